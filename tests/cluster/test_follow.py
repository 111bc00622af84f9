from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from cluster.fake_jobs import fake_jobs
from yolofleet.cluster import service as jobs
from yolofleet.cluster.follow import follow
from yolofleet.cluster.sent_job import SentJob
from yolofleet.cluster.service import JobService
from yolofleet.core.errors import UserError, WorkError

RUNNING = SentJob("id", "run", "digest", "RUNNING", None, "", 0.0, None)
TEXT = "".join(f"step {step}\n" for step in range(40))


class Cluster:
    """What a job printed so far, over connections that end as planned: 'break', 'hang', 'close'."""

    address = "http://cluster:8265"

    def __init__(self, plan: list[tuple[int, str]], piece: int = 7) -> None:
        self.plan = plan
        self.piece = piece
        self.connections = 0

    async def tail(self, job: SentJob) -> AsyncIterator[str]:
        upto, ending = self.plan[self.connections]
        self.connections += 1
        for start in range(0, upto, self.piece):
            yield TEXT[start : min(start + self.piece, upto)]
        if ending == "break":
            raise RuntimeError("connection reset")
        if ending == "hang":
            await asyncio.sleep(3600)

    def job(self, name: str) -> SentJob:
        return RUNNING if self.connections < len(self.plan) else replace(RUNNING, status="SUCCEEDED", exit_code=0)

    def logs(self, job: SentJob) -> str:
        return TEXT


@pytest.mark.parametrize("endings", [["close"], ["break", "close"], ["hang", "close"], ["hang", "break", "hang"]])
def test_every_character_is_shown_once_however_connections_end(endings: list[str]) -> None:
    plan = [(50 * (number + 1), ending) for number, ending in enumerate(endings)]
    shown: list[str] = []
    warnings: list[str] = []
    service: Any = Cluster(plan)
    ended = follow(service, RUNNING, shown.append, warnings.append, retry_seconds=0.01, quiet_seconds=0.1)
    assert "".join(shown) == TEXT
    assert ended.status == "SUCCEEDED"
    assert len(warnings) == endings.count("break"), "silence alone is no broken connection"


def test_a_cluster_that_never_comes_back_is_given_up_with_the_way_on() -> None:
    class Gone(Cluster):
        def job(self, name: str) -> SentJob:
            raise UserError("no answer")

    service: Any = Gone([(20, "break")] * 1000)
    with pytest.raises(WorkError, match="yolofleet jobs logs id --follow --address http://cluster:8265"):
        follow(service, RUNNING, str, str, patience_seconds=0.1, retry_seconds=0.01)


def test_a_host_that_takes_a_connection_and_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ANSWER_TIMEOUT_SECONDS", (1.0, 0.5))
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # the service sets it
    with socket.create_server(("127.0.0.1", 0)) as silent:
        taken: list[socket.socket] = []
        threading.Thread(target=lambda: taken.append(silent.accept()[0]), daemon=True).start()
        with pytest.raises(UserError, match="no Ray cluster answers there"):
            JobService(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("earlier", [None, "http://127.0.0.1:9"])
def test_the_address_of_a_service_is_not_that_of_later_ones(
    monkeypatch: pytest.MonkeyPatch, earlier: str | None
) -> None:
    """It stood in the environment from then on: a doctor that was asked about another cluster looked at this one."""
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    if earlier is not None:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", earlier)
    with fake_jobs() as cluster:
        assert JobService(cluster.address).jobs() == []
    assert os.environ.get("RAY_API_SERVER_ADDRESS") == earlier
