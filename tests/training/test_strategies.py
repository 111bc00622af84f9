"""Every strategy computes the same, and goes on from a checkpoint of any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from system.shell import rows
from yolofleet.core.errors import UserError
from yolofleet.specs.job import JobSpec

MakeJob = Callable[..., JobSpec]
NUM_STEPS = 20


def torchrun(num_workers: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=590)


def trained(job: JobSpec, folder: Path, num_workers: int = 2) -> Path:
    """Train under torchrun and return the run directory."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job.document()))
    done = torchrun(num_workers, "-m", "yolofleet.training", str(file))
    assert done.returncode == 0, done.stderr[-4000:]
    return Path(job.storage) / job.name


def job_of(small_job: MakeJob, **changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "epochs": NUM_STEPS * 8 / 32,
        "evaluation": {"every_epochs": 99.0},
        "checkpoint": {"every_steps": NUM_STEPS // 2, "keep": 3},
    }
    return small_job(**(fields | changes))


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_zero_computes_what_ddp_does_and_resumes_from_any_other(optimizer: str, tmp_path: Path) -> None:
    out = tmp_path / "losses.json"
    done = torchrun(2, str(Path(__file__).with_name("strategy_worker.py")), str(out), optimizer)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(out.read_text())
    reference = torch.tensor(found["losses"]["ddp"])
    assert len(reference) == NUM_STEPS
    assert reference.isfinite().sum() == NUM_STEPS - 1  # one step was spoilt, and skipped by all
    for name, losses in found["losses"].items():
        difference = (torch.tensor(losses) - reference).nan_to_num()
        assert difference.abs().max() < 1e-4, (name, difference)
        assert torch.tensor(losses).isnan().equal(reference.isnan())
    assert found["same_names"]
    assert found["first_norms"]["zero1"] == pytest.approx(found["first_norms"]["ddp"], rel=1e-5)
    assert found["first_norms"]["zero2"] == pytest.approx(found["first_norms"]["ddp"], rel=1e-5)
    assert max(found["distances"].values()) < 1e-4, found["distances"]


@pytest.mark.slow
@pytest.mark.system
def test_a_run_resumes_under_another_strategy(small_job: MakeJob, tmp_path: Path) -> None:
    run = trained(job_of(small_job, strategy="zero2"), tmp_path)
    for gone in (run / "checkpoints" / f"step-{NUM_STEPS}").iterdir():
        gone.unlink()
    trained(job_of(small_job, strategy="ddp"), tmp_path)
    assert [row["step"] for row in rows(run / "events.jsonl") if row["kind"] == "start"] == [0, NUM_STEPS * 3 // 4]
    assert [row["step"] for row in rows(run / "metrics.jsonl") if "loss" in row] == list(range(1, NUM_STEPS + 1))
    moments = safetensors.torch.load_file(run / f"checkpoints/step-{NUM_STEPS}/moments.safetensors")
    weights = safetensors.torch.load_file(run / f"checkpoints/step-{NUM_STEPS}/weights.safetensors")
    assert moments.keys() < weights.keys()
    assert all(moments[name].shape == weights[name].shape for name in moments)


def test_settings_that_zero_cannot_compute_are_refused_before_the_start(small_job: MakeJob) -> None:
    with pytest.raises(UserError, match="zero1 computes in fp32 or bf16"):
        small_job(strategy="zero1", precision="fp16")
    with pytest.raises(UserError, match=r"4 micro-batches cannot be shared by 3 workers; use strategy zero1"):
        small_job(strategy="zero2", global_batch_size=16, cluster={"workers": [1, 3]})
