"""One global batch of six micro-batches gives one gradient at any number of workers, uneven ones included."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from yolofleet.specs.job import JobSpec

WORKERS = Path(__file__).with_name("invariance_worker.py")
NUM_STEPS = 20
NUM_MICRO_BATCHES = 6
# Where training is unstable, rounding errors of 1e-16 grow tenfold a step, whatever computes them: deep and narrow
# networks at the start are, so they are trained more gently.
RATE, DEEP_RATE = 5e-4, 1e-5


def results(
    make: Callable[..., JobSpec], folder: Path, image_size: int = 64, rate: float = RATE, **changes: Any
) -> dict[tuple[int, int], dict[str, Any]]:
    """Train in groups of one to four workers; returns what each rank of each group found."""
    job = make(
        precision="fp64",
        micro_batch_size=2,
        global_batch_size=2 * NUM_MICRO_BATCHES,
        epochs=NUM_STEPS * 2 * NUM_MICRO_BATCHES / 32,
        evaluation={"every_epochs": 100},
        checkpoint={"every_steps": 1000},
        record_samples=False,
        hyperparameters={"lr0": rate, "warmup_bias_lr": rate, "warmup_min_steps": 10},
        **changes,
    )
    job = job.model_copy(update={"data": job.data.model_copy(update={"image_size": image_size})})
    assert job.num_steps(32) == NUM_STEPS
    file = folder / "job.json"
    file.write_text(json.dumps(job.document()))
    workers = subprocess.Popen(
        [sys.executable, str(WORKERS), str(folder), str(file), str(NUM_STEPS)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, output = workers.communicate(timeout=550)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(workers.pid, signal.SIGKILL)
    assert workers.returncode == 0, output[-3000:]
    return {
        (world, rank): safetensors.torch.load_file(folder / f"world-{world}-rank-{rank}.safetensors")
        for world in range(job.batch_norm_workers, 5, job.batch_norm_workers)
        for rank in range(world)
    }


def assert_invariant(found: dict[tuple[int, int], dict[str, torch.Tensor]]) -> None:
    alone = found[min(found)]  # rank 0 of the fewest workers
    kinds = {name.partition(".")[0] for name in alone}
    assert kinds == {"loss", "gradient", "statistics", "weights", "average"}
    assert all(tensor.dtype == torch.float64 for name, tensor in alone.items() if name.startswith("gradient"))
    assert len(alone["loss"]) == NUM_STEPS
    for (world, rank), tensors in found.items():
        expected = {name: tensor for name, tensor in alone.items() if name != "loss" or rank == 0}
        assert tensors.keys() == expected.keys(), (world, rank)
        for name, tensor in tensors.items():
            message = f"{name} at {world} workers, rank {rank}"
            if name.startswith(("weights", "average")) or name == "loss":
                torch.testing.assert_close(tensor, alone[name], rtol=1e-6, atol=1e-6, msg=message)
            else:
                scale = float(alone[name].abs().max())
                torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=1e-5 * max(scale, 1e-6), msg=message)


SMALL_TABLE = {
    "name": "small",
    "image_size": 64,
    "activation": "silu",
    "blocks": [
        {"block": "conv", "out": 8, "stride": 2},
        {"block": "conv", "out": 8, "stride": 2},
        {"block": "conv", "out": 16, "stride": 2},
        {"name": "f3", "block": "elan", "hidden": 8, "stack": 2, "out": 16},
        {"name": "f4", "block": "conv", "out": 24, "stride": 2, "rep": True},
        {"name": "f5", "block": "conv", "out": 24, "stride": 2},
    ],
    "head": {"from": ["f3", "f4", "f5"]},
    "auxiliary": {"from": ["f3", "f4", "f5"], "out": [16, 16, 16]},
    "anchors": [[6, 8, 10, 10, 14, 8], [12, 18, 20, 14, 18, 24], [30, 22, 26, 36, 44, 44]],
}


@pytest.mark.system
def test_any_number_of_workers_computes_the_same(small_job: Callable[..., JobSpec], tmp_path: Path) -> None:
    table = tmp_path / "small.yaml"
    table.write_text(json.dumps(SMALL_TABLE))
    found = results(small_job, tmp_path, model={"spec": str(table)})
    assert_invariant(found)
    first, last = found[1, 0]["loss"][0], found[1, 0]["loss"][-1]
    assert last < first  # it is a run that learns, not one that stands still


@pytest.mark.system
def test_so_it_does_with_batch_norm_over_two_workers(small_job: Callable[..., JobSpec], tmp_path: Path) -> None:
    table = tmp_path / "small.yaml"
    table.write_text(json.dumps(SMALL_TABLE))
    job = {"model": {"spec": str(table)}, "cluster": {"workers": 2}}
    found = results(small_job, tmp_path, batch_norm_workers=2, **job)
    assert {world for world, _ in found} == {2, 4}
    assert_invariant(found)


@pytest.mark.slow
@pytest.mark.parametrize("assigner", [None, "independent", "lead", "coarse_to_fine"])
def test_so_it_does_with_every_assigner(
    assigner: str | None, small_job: Callable[..., JobSpec], tmp_path: Path
) -> None:
    name, recipe = ("yolov7-tiny", "tiny") if assigner is None else ("yolov7-w6", "p6")
    model = {"name": name, "transition_width": 0.05, "hidden_width": 0.05}
    assignment = {} if assigner is None else {"assigner": assigner}
    assert_invariant(results(small_job, tmp_path, 128, DEEP_RATE, model=model, recipe=recipe, assignment=assignment))
