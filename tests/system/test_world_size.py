"""One worker or two: the same images at every step, and the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from system.shell import Shell, digests, rows, write_job

pytestmark = pytest.mark.system
STEPS = 5
CHANGES = {"precision": "fp64", "epochs": STEPS * 8 / 64, "hyperparameters__ema_ramp_steps": 2.0}


def end(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in ("weights", "average", "moments"):
        found = safetensors.torch.load_file(run / f"checkpoints/step-{STEPS}/{file}.safetensors")
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


def test_two_ray_workers_end_as_one_process(shell: Shell, drawn: Path, alone: Path) -> None:
    shell.succeed("train", str(write_job(shell.folder, drawn, **CHANGES)))
    run = shell.folder / "runs" / "small"
    assert [row["workers"] for row in rows(run / "events.jsonl") if row["kind"] == "start"] == [2]
    assert_same(run, alone)


def torchrun(num_processes: int, job: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return subprocess.run(
        [*command, "-m", "yolofleet.training", str(job)],
        cwd=job.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_torchrun_processes_end_as_one(shell: Shell, drawn: Path, alone: Path) -> None:
    done = torchrun(2, write_job(shell.folder, drawn, **CHANGES))
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same(shell.folder / "runs" / "small", alone)


def test_more_processes_than_micro_batches_are_refused(shell: Shell, drawn: Path) -> None:
    done = torchrun(3, write_job(shell.folder, drawn, **CHANGES))
    assert done.returncode != 0
    assert "3 processes were started, but a global batch of 8 holds only 2 micro-batches" in done.stderr
