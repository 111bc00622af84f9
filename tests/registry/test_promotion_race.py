"""Processes that promote against each other on a real MLflow server, and processes that are killed while they do."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.servers import free_port, mlflow_server
from yolofleet.registry.alias_history import alias_changes, move_alias, previous_alias, rollback_target
from yolofleet.registry.promotion_lock import read_requests
from yolofleet.registry.versions import ModelTags
from yolofleet.tracking.mlflow_store import open_client

pytestmark = pytest.mark.system

ALIAS = "champion"
WORKER = Path(__file__).with_name("promotion_worker.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    with mlflow_server(tmp_path_factory.mktemp("server"), port):
        yield f"http://127.0.0.1:{port}"


def model_with_versions(uri: str, name: str, num_versions: int) -> ModelTags:
    client = open_client(uri)
    client.create_registered_model(name)
    for _ in range(num_versions):
        client.create_model_version(name, source="s3://nowhere/nothing")
    return ModelTags(uri, name)


def worker(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def racers(uri: str, name: str, num_processes: int) -> Iterator[list[subprocess.Popen[str]]]:
    processes = [worker("race", uri, name, 2 * number + 1) for number in range(num_processes)]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def race(uri: str, name: str, num_processes: int, num_rounds: int) -> None:
    store = model_with_versions(uri, name, 2 * num_processes)
    expected: int | None = None
    winners: list[int] = []
    with racers(uri, name, num_processes) as processes:
        for _ in range(num_rounds):
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(json.dumps(expected) + "\n")
                process.stdin.flush()
            answers: list[dict[str, Any]] = [json.loads(process.stdout.readline()) for process in processes]  # type: ignore[union-attr]
            won = [answer["won"] for answer in answers if "won" in answer]
            _, aliases = store.read()
            assert won == [aliases[ALIAS]]
            lost = [answer["lost"] for answer in answers if "lost" in answer]
            assert len(lost) == num_processes - 1
            assert all(f"@champion points to version {won[0]} now" in text for text in lost)
            winners.append(won[0])
            expected = won[0]
    tags, aliases = store.read()
    history = alias_changes(tags, aliases, ALIAS)
    assert [change.sequence for change in history] == list(range(1, num_rounds + 1))
    assert [change.version for change in history] == winners and aliases[ALIAS] == winners[-1]
    assert [change.previous for change in history] == [None, *winners[:-1]]
    assert read_requests(tags, ALIAS) == []


@pytest.mark.slow
def test_of_a_few_processes_one_wins_each_round(server: str) -> None:
    race(server, "few", num_processes=3, num_rounds=4)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_of_twenty_processes_one_wins_each_of_fifty_rounds(server: str) -> None:
    race(server, "many", num_processes=20, num_rounds=50)


@pytest.mark.parametrize(
    "num_writes", [pytest.param(number, marks=[] if number == 4 else pytest.mark.slow) for number in range(7)]
)
def test_killed_before_a_write_the_next_promotion_puts_it_right(server: str, num_writes: int) -> None:
    store = model_with_versions(server, f"killed-{num_writes}", 3)
    move_alias(store, ALIAS, 1, expected=None, action="promote", reason="first")
    process = worker("die", server, f"killed-{num_writes}", 2, 1, num_writes)
    assert process.wait(timeout=120) == -signal.SIGKILL
    tags, aliases = store.read()
    committed = num_writes > 3
    assert aliases[ALIAS] == (2 if committed else 1)
    assert alias_changes(tags, aliases, ALIAS)[-1].version == aliases[ALIAS]
    if committed:
        assert rollback_target(tags, aliases, ALIAS) == 1
    move_alias(store, ALIAS, 3, expected=aliases[ALIAS], action="promote", reason="next")
    tags, after = store.read()
    assert [change.version for change in alias_changes(tags, after, ALIAS)] == ([1, 2, 3] if committed else [1, 3])
    assert after == {ALIAS: 3, previous_alias(ALIAS): aliases[ALIAS]}
    assert read_requests(tags, ALIAS) == []
