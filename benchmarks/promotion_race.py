"""Processes that promote against each other on an MLflow server: one wins each round, the others get an error.

    python benchmarks/promotion_race.py [--processes 20 --rounds 50] [--json]

In each round all processes try to move the alias `champion` of one model, each to a version of its own that was
compared with the champion of the round before. It counts the rounds with exactly one winner that the alias then points
to, the losers that got an error, and the lock requests left over. It measures the time of a round, and of a single
promotion without a rival, in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolofleet.registry.alias_history import alias_changes, move_alias
from yolofleet.registry.promotion_lock import read_requests
from yolofleet.registry.versions import ModelTags
from yolofleet.tracking.mlflow_store import open_client

ALIAS = "champion"
LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Without it a server has ten processes that nothing here uses."""
NUM_ALONE = 10
WORKER = """
import json, sys
from yolofleet.registry.alias_history import PromotionLostError, move_alias
from yolofleet.registry.versions import ModelTags
uri, version = sys.argv[1], int(sys.argv[2])
store = ModelTags(uri, "race")
store.read()
print("ready", flush=True)
for line in sys.stdin:
    expected = json.loads(line)
    own = version + 1 if version == expected else version
    try:
        move_alias(store, "champion", own, expected=expected, action="promote", reason="race")
        print(json.dumps({"won": own}), flush=True)
    except PromotionLostError as error:
        print(json.dumps({"lost": str(error)}), flush=True)
"""


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run an MLflow server over a sqlite database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where MLflow looks for uvicorn
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **LEAN, "PATH": path}
        )
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def model(uri: str, name: str, num_versions: int) -> ModelTags:
    """Make a registered model with empty versions."""
    client = open_client(uri)
    client.create_registered_model(name)
    for _ in range(num_versions):
        client.create_model_version(name, source="s3://nowhere/nothing")
    return ModelTags(uri, name)


def race(uri: str, num_processes: int, num_rounds: int) -> dict[str, Any]:
    """Let the processes race and count what came of it."""
    store = model(uri, "race", 2 * num_processes)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, uri, str(2 * number + 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(num_processes)
    ]
    seconds: list[float] = []
    expected: int | None = None
    good_rounds, num_errors = 0, 0
    try:
        for process in processes:
            process.stdout.readline()  # type: ignore[union-attr]
        for _ in range(num_rounds):
            begin = time.perf_counter()
            for process in processes:
                process.stdin.write(json.dumps(expected) + "\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            answers = [json.loads(process.stdout.readline()) for process in processes]  # type: ignore[union-attr]
            seconds.append(time.perf_counter() - begin)
            won = [answer["won"] for answer in answers if "won" in answer]
            _, aliases = store.read()
            good_rounds += won == [aliases[ALIAS]]
            num_errors += sum("lost" in answer for answer in answers)
            expected = aliases[ALIAS]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    tags, aliases = store.read()
    return {
        "processes": num_processes,
        "rounds": num_rounds,
        "rounds_with_one_winner": good_rounds,
        "losers": num_rounds * (num_processes - 1),
        "losers_with_error": num_errors,
        "history_entries": len(alias_changes(tags, aliases, ALIAS)),
        "requests_left": len(read_requests(tags, ALIAS)),
        "median_round_seconds": round(statistics.median(seconds), 3),
        "longest_round_seconds": round(max(seconds), 3),
    }


def alone(uri: str) -> float:
    """Return the median seconds of a promotion that nobody contests."""
    store = model(uri, "alone", 2)
    seconds: list[float] = []
    expected: int | None = None
    for number in range(NUM_ALONE):
        version = number % 2 + 1
        begin = time.perf_counter()
        move_alias(store, ALIAS, version, expected=expected, action="promote", reason="alone")
        seconds.append(time.perf_counter() - begin)
        expected = version
    return statistics.median(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="yolofleet-race-") as folder, server(Path(folder)) as uri:
        single = alone(uri)
        result = race(uri, arguments.processes, arguments.rounds)
    result["uncontested_seconds"] = round(single, 3)
    result["round_over_uncontested"] = round(result["median_round_seconds"] / single, 2)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
