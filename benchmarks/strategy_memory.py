"""Memory of each worker by strategy, measured beside the forecast that the table in the pages is made of.

    python benchmarks/strategy_memory.py [--model yolov7] [--workers 2] [--json]

Each strategy trains for three steps of two micro-batches in processes of its own (gloo, small images, so that
activations are next to nothing). What counts is the most that a process holds more after a backward pass of the last
step than after it has trained a narrow model and forgotten it: weights, gradients, momentum, and whatever the strategy
keeps besides. Without the weights' average, which is the same for all. In units of the weights; `over_forecast` is the
ratio to the forecast, of the larger worker.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn

from yolofleet.models import build_model
from yolofleet.models.memory import training_memory
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import resolve
from yolofleet.specs.hyperparameters import merged
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelChoice
from yolofleet.training.loop.update import Precision, build_optimizer
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.strategies.strategy import build_strategy

STRATEGIES = ("ddp", "zero1", "zero2")
NUM_CLASSES = 80
SIDE = 64


def held_bytes() -> int:
    """Return what this process holds, after what it does not need has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def trained(model: nn.Module, job: JobSpec, group: WorkerGroup) -> int:
    """Train for three steps; returns the most that the process holds after a backward pass of the last one."""
    optimizer = build_optimizer(model.train(), merged("p5", {}), job.global_batch_size)
    strategy = build_strategy(job, model, optimizer, Precision("fp32", group.device), group)
    images = torch.rand(1, 3, SIDE, SIDE)
    for _ in range(3):
        held = 0
        for last in (False, True):
            with strategy.accumulating(last):
                loss = sum((level.float().square().mean() for level in strategy.network(images)), torch.zeros(()))
                strategy.backward(loss)
            del loss
            held = max(held, held_bytes())
        strategy.step(strategy.gradient_norm().isfinite())
    return held


def measured(name: str, strategy_name: str, out: Path) -> None:
    """Train as one of the workers, and write down what this one held."""
    import deepspeed  # noqa: F401 - its own code is no part of what is asked

    dist.init_process_group("gloo")
    group = WorkerGroup(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    torch.set_num_threads(1)
    document = {"name": "x", "model": {"name": name}, "data": {"train": "a", "val": "b"}, "strategy": strategy_name}
    job = JobSpec.parse(document | {"cluster": {"workers": group.world_size}}, source="job")
    narrow = build_model(ModelChoice(name=name, transition_width=0.125, hidden_width=0.125), num_classes=NUM_CLASSES)
    trained(narrow, job, group)  # what libraries need for themselves is there before
    del narrow
    before = held_bytes()
    model = build_model(name, num_classes=NUM_CLASSES)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    held = trained(model, job, group) - before
    out.with_suffix(f".{group.rank}").write_text(json.dumps({"held": held, "weights": weights}))
    dist.barrier()
    dist.destroy_process_group()


def compared(name: str, strategy: str, num_workers: int) -> dict[str, Any]:
    """Measure a strategy, and set it beside its forecast."""
    memory = training_memory(
        wire(resolve(name)),
        num_classes=NUM_CLASSES,
        size=(SIDE, SIDE),
        micro_batch_size=1,
        strategy=strategy,  # type: ignore[arg-type]
        num_workers=num_workers,
    )
    forecast = memory.weights + memory.gradients + memory.momentum + memory.exchange
    with tempfile.TemporaryDirectory(prefix="yolofleet-memory-") as folder:
        out = Path(folder, "held")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}"]
        subprocess.run([*command, __file__, "--worker", strategy, "--model", name, "--out", str(out)], check=True)
        found = [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in range(num_workers)]
    weights, held = found[0]["weights"], max(entry["held"] for entry in found)
    return {
        "strategy": strategy,
        "in_weights": round(held / weights, 2),
        "forecast_in_weights": round(forecast / weights, 2),
        "over_forecast": round(held / forecast, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov7")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.add_argument("--worker", choices=STRATEGIES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        measured(options.model, options.worker, options.out)
        return
    results = [compared(options.model, strategy, options.workers) for strategy in STRATEGIES]
    if options.json:
        print(json.dumps({"model": options.model, "workers": options.workers, "strategies": results}, indent=1))
        return
    for row in results:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
