"""A run belongs to one command at a time."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from system.shell import Shell, rows, wait_for, write_job

pytestmark = pytest.mark.system


def test_a_second_driver_is_refused_and_a_killed_one_succeeded(shell: Shell, drawn: Path) -> None:
    job = str(write_job(shell.folder, drawn, cluster__workers=1, epochs=400))  # longer than the test
    run = shell.folder / "runs" / "small"
    first = shell.start("train", job, "--launcher", "process")
    wait_for(lambda: rows(run / "metrics.jsonl"), what="the first step")
    second = shell.run("train", job, "--launcher", "process")
    assert second.returncode == 2
    assert f"is in use by process {first.pid}" in second.stderr
    assert f"kill {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    third = shell.start("train", job, "--launcher", "process")
    wait_for(lambda: "that process has ended" in shell.output(), what="the takeover")
    wait_for(lambda: len([row for row in rows(run / "events.jsonl") if row["kind"] == "start"]) == 2, what="its start")

    # Someone on another host takes over, as after a partition: what runs here writes nothing more.
    lock = sorted((run / "lock").glob("*.json"))[-1]
    taken = json.loads(lock.read_text())
    taken |= {"number": taken["number"] + 1, "mark": "other", "host": "far", "place": "far", "process": 1}
    (run / "lock" / f"{taken['number']:08d}.json").write_text(json.dumps(taken))
    time.sleep(0.2)
    before = {path: path.read_bytes() for path in run.rglob("*.jsonl")} | dict.fromkeys(run.glob("checkpoints/*"), b"")
    assert third.wait(timeout=60) == 1
    assert "was taken over by process 1 of" in shell.output()
    after = {path: path.read_bytes() for path in run.rglob("*.jsonl")} | dict.fromkeys(run.glob("checkpoints/*"), b"")
    assert after == before
