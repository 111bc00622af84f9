"""An announced end costs no step: SIGTERM or Ctrl-C lets the step finish and saves it; the same command goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from system.shell import Shell, digests, rows, wait_for, write_job

pytestmark = [pytest.mark.system, pytest.mark.slow]
NUM_STEPS = 64


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_run_has_saved_its_newest_step(kind: signal.Signals, shell: Shell, drawn: Path) -> None:
    changes = {"epochs": NUM_STEPS * 8 / 64, "evaluation": {"every_epochs": 99.0}, "checkpoint__every_steps": 999}
    job = str(write_job(shell.folder, drawn, cluster__workers=1, **changes))
    run = shell.folder / "runs" / "small"
    first = shell.start("train", job, "--launcher", "process")
    wait_for(lambda: [row for row in rows(run / "metrics.jsonl") if row["step"] >= 3], what="step 3")
    first.send_signal(kind)
    assert first.wait(timeout=60) == (130 if kind == signal.SIGINT else 1)
    assert f"stopped ({kind.name}) with step" in shell.output()
    assert "Traceback" not in shell.output()
    (left,) = (event for event in rows(run / "events.jsonl") if event["kind"] == "left")
    assert (run / f"checkpoints/step-{left['step']}/COMMITTED").exists()
    assert [event["kind"] for event in rows(run / "events.driver.jsonl")] == ["stopped"]
    shell.succeed("train", job, "--launcher", "process")
    events = rows(run / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "start"] == [0, left["step"]]
    assert [event["steps_redone"] for event in events if event["kind"] == "regained"] == [0]
    assert len(digests(run)) == NUM_STEPS * 2
    assert [row["step"] for row in rows(run / "metrics.jsonl") if "loss" in row] == list(range(1, NUM_STEPS + 1))
