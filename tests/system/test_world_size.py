"""One worker or two, loader threads or processes: the same images at every step, and the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

from system.shell import Shell, digests, rows, torchrun, wait_for, write_job

pytestmark = pytest.mark.system
STEPS = 5
CHANGES = {"precision": "fp64", "epochs": STEPS * 8 / 64, "hyperparameters__ema_ramp_steps": 2.0}


def end(run: Path, num_steps: int = STEPS) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in ("weights", "average", "moments"):
        found = safetensors.torch.load_file(run / f"checkpoints/step-{num_steps}/{file}.safetensors")
        tensors |= {f"{file}.{name}": tensor for name, tensor in found.items()}
    return tensors


@pytest.fixture(scope="module")
def alone(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    job = write_job(folder, drawn, **CHANGES, cluster__workers=1)
    Shell(folder).succeed("train", str(job), "--launcher", "process")
    return folder / "runs" / "small"


def assert_same(run: Path, alone: Path) -> None:
    assert len(digests(alone)) == STEPS * 2
    assert digests(run) == digests(alone)
    ours, theirs = end(run), end(alone)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-9, msg=name)
    assert any(tensor.dtype == torch.float64 for tensor in ours.values())


@pytest.mark.slow  # torchrun's end as Ray's do, see test_interruptions, and as one process below
def test_two_ray_workers_end_as_one_process(shell: Shell, drawn: Path, alone: Path) -> None:
    shell.succeed("train", str(write_job(shell.folder, drawn, **CHANGES, data__loader="processes")))
    run = shell.folder / "runs" / "small"
    assert [row["workers"] for row in rows(run / "events.jsonl") if row["kind"] == "start"] == [2]
    assert_same(run, alone)


def test_two_torchrun_processes_end_as_one(shell: Shell, drawn: Path, alone: Path) -> None:
    done = torchrun(2, write_job(shell.folder, drawn, **CHANGES, data__loader="processes"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same(shell.folder / "runs" / "small", alone)


def test_more_processes_than_micro_batches_are_refused(shell: Shell, drawn: Path) -> None:
    done = torchrun(3, write_job(shell.folder, drawn, **CHANGES))
    assert done.returncode != 0
    assert "3 processes were started, but a global batch of 8 holds only 2 micro-batches" in done.stderr


@pytest.mark.slow
def test_another_number_of_workers_in_between_changes_nothing(tmp_path: Path, drawn: Path) -> None:
    """1, 3 (of unequal shares), 2 and 4 workers, each going on where the others stopped, against one worker."""
    num_steps, rate = 20, 5e-4  # at a higher rate rounding grows tenfold with every step, with any number of workers
    changes = CHANGES | {
        "epochs": num_steps * 8 / 64,
        "micro_batch_size": 2,
        "hyperparameters": {"warmup_min_steps": 4, "ema_ramp_steps": 2.0, "lr0": rate, "warmup_bias_lr": rate},
    }
    del changes["hyperparameters__ema_ramp_steps"]
    runs = []
    for name, legs in (("alone", [(1, num_steps)]), ("changing", [(1, 5), (3, 11), (2, 17), (4, num_steps)])):
        folder = tmp_path / name
        folder.mkdir()
        job = write_job(folder, drawn, **changes)
        for num_workers, last_step in legs:
            done = torchrun(
                num_workers, job, str(Path(__file__).with_name("leaving_worker.py")), str(job), str(last_step)
            )
            assert done.returncode == 0, done.stderr[-4000:]
        runs.append(folder / "runs" / "small")
    alone, changing = runs
    assert [row["workers"] for row in rows(changing / "events.jsonl") if row["kind"] == "start"] == [1, 3, 2, 4]
    assert len(digests(alone)) == num_steps * 4
    assert digests(changing) == digests(alone)
    ours, theirs = end(changing, num_steps), end(alone, num_steps)
    for key, tensor in ours.items():
        if not key.startswith("moments."):  # they are as large as the gradients, and rounding in them as well
            torch.testing.assert_close(tensor, theirs[key], rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.slow
def test_a_stuck_collective_is_ended_and_the_group_starts_again(tmp_path: Path, drawn: Path) -> None:
    """One process is stopped, so the other waits for it in a collective: it leaves its stacks and ends."""
    num_steps = 400
    job = write_job(
        tmp_path,
        drawn,
        epochs=num_steps * 8 / 64,
        checkpoint__every_steps=10,
        evaluation={"every_epochs": 1000.0},
        cluster__hang_timeout_seconds=5.0,
    )
    run = tmp_path / "runs" / "small"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "output.log").open("w") as log:
        agent = subprocess.Popen(
            [*command, "-m", "yolofleet.training", str(job)], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: len(rows(run / "metrics.jsonl")) >= 12, 240, "step 12")
        second = next(
            process
            for process in psutil.Process(agent.pid).children(recursive=True)
            if process.environ().get("RANK") == "1" and "yolofleet.training" in process.cmdline()
        )
        second.send_signal(signal.SIGSTOP)
        assert agent.wait(timeout=480) == 0, (tmp_path / "output.log").read_text()[-4000:]
    finally:
        kill_family(agent)
    (stacks,) = (run / "stacks").iterdir()
    assert "-rank-0-" in stacks.name
    assert "no progress for 5 s" in stacks.read_text()
    assert "thread MainThread" in stacks.read_text()
    assert len([row for row in rows(run / "events.jsonl") if row["kind"] == "start"]) == 2
    assert len(digests(run)) == num_steps * 2


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of a process that may have stopped children."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()
