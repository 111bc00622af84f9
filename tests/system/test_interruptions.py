"""Kill anything: the run ends at the same step, and the same samples are behind its weights."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

from system.shell import Shell, digests, kill_group, rows, torchrun, wait_for, write_job

pytestmark = pytest.mark.system
NUM_STEPS = 16


@pytest.fixture(scope="module")
def undisturbed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that nobody kills; without Ray, which is to change nothing."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = torchrun(2, write_job(folder, drawn))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "runs" / "small"


def workers_of(driver: int) -> list[psutil.Process]:
    """The worker processes that belong to a driver's own Ray."""
    return [
        process
        for process in psutil.Process(driver).children(recursive=True)
        if any("RayTrainWorker" in part for part in process.cmdline())
    ]


def assert_same_end(run: Path, undisturbed: Path) -> None:
    assert digests(run) == digests(undisturbed)
    assert len(digests(run)) == NUM_STEPS * 2
    for file in ("weights", "average", "moments"):
        ours, theirs = (
            safetensors.torch.load_file(folder / f"checkpoints/step-{NUM_STEPS}/{file}.safetensors")
            for folder in (run, undisturbed)
        )
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), f"{file}: {name}"
    steps = [row["step"] for row in rows(run / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, NUM_STEPS + 1))


def test_a_killed_worker_is_replaced_and_the_run_ends_the_same(shell: Shell, drawn: Path, undisturbed: Path) -> None:
    run = shell.folder / "runs" / "small"
    driver = shell.start("train", str(write_job(shell.folder, drawn)))
    wait_for(lambda: [row for row in rows(run / "metrics.jsonl") if row["step"] >= 6], what="step 6")
    os.kill(workers_of(driver.pid)[-1].pid, signal.SIGKILL)
    assert driver.wait(timeout=300) == 0, shell.output()[-4000:]
    starts = [row for row in rows(run / "events.jsonl") if row["kind"] == "start"]
    assert len(starts) == 2
    assert starts[1]["step"] >= 4
    assert "died" in shell.output()
    assert "the workers started again from step" in shell.output()
    assert_same_end(run, undisturbed)


def test_a_killed_driver_goes_on_with_the_same_command(shell: Shell, drawn: Path, undisturbed: Path) -> None:
    run = shell.folder / "runs" / "small"
    job = str(write_job(shell.folder, drawn))
    driver = shell.start("train", job)
    wait_for(lambda: [row for row in rows(run / "metrics.jsonl") if row["step"] >= 9], what="step 9")
    kill_group(driver)
    shell.succeed("train", job)
    starts = [row["step"] for row in rows(run / "events.jsonl") if row["kind"] == "start"]
    assert starts[0] == 0
    assert starts[1] >= 4
    assert_same_end(run, undisturbed)


def test_a_finished_run_says_so_and_does_nothing(shell: Shell, drawn: Path) -> None:
    command = ("train", str(write_job(shell.folder, drawn, cluster__workers=1, epochs=0.25)), "--launcher", "process")
    shell.succeed(*command)
    events = shell.folder / "runs/small/events.jsonl"
    before = events.read_bytes()
    assert "finished already" in shell.succeed(*command)
    assert events.read_bytes() == before
