"""A run with any optimiser that is stopped and resumed is the run that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from yolofleet.specs.job import JobSpec
from yolofleet.training.checkpoint import store
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.loop.worker_progress import WorkerProgress
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_worker

NUM_STEPS = 6


def trained(job: JobSpec, *, stop_after: int | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Train, with a stop on the way or without, and return the tensors of the last checkpoint."""
    check_job(job)
    if stop_after is not None:
        left = run_worker(job, WorkerGroup(progress=WorkerProgress(leave_after_step=stop_after)))
        assert (left.step, left.left is None) == (stop_after, False)
    assert run_worker(job, WorkerGroup()).step == NUM_STEPS
    folder = Path(job.storage) / job.name / "checkpoints" / f"step-{NUM_STEPS}"
    return {
        name: safetensors.torch.load_file(folder / f"{name}.safetensors") for name in ("weights", "average", "moments")
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_stopped_run_ends_as_the_other_does_and_moments_keep_their_layout(
    optimizer: str, small_job: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts: list[frozenset[str]] = []
    packed = store.PackedTensors.__init__

    def counted(self: store.PackedTensors, tensors: store.Tensors) -> None:
        layouts.append(frozenset(tensors))
        packed(self, tensors)

    monkeypatch.setattr(store.PackedTensors, "__init__", counted)
    changes = {
        "hyperparameters": {"optimizer": optimizer, "lr0": 0.001, "warmup_min_steps": 2, "warmup_epochs": 0.1},
        "epochs": NUM_STEPS * 8 / 32,
        "evaluation": {"every_epochs": 99.0},
    }
    whole = trained(small_job(name="whole", **changes))
    assert len(layouts) == 3, "the memory of checkpoints is allocated once, before the first step"
    stopped = trained(small_job(name="stopped", **changes), stop_after=NUM_STEPS // 2)
    assert len(whole["moments"]) == len(layouts[-1]) > 0
    for file, tensors in whole.items():
        assert tensors.keys() == stopped[file].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, stopped[file][name]), f"{file}: {name}"
    moments = [name for name in whole["moments"] if name.startswith("exp_avg_sq.")]
    assert bool(moments) == (optimizer != "sgd")
