"""How soon a run from scratch learns, and which of the rules of its first steps decides that.

    python benchmarks/training/early_curve.py [FOLDER] [--out DIR] [--seeds 5] [--arms NAME,...] [--minutes M] [--json]

Trains YOLOv7-tiny on real images (FOLDER holds ``images/``, ``instances_train.json`` and ``instances_val.json``) by the
tiny recipe, 16 images a step, and evaluates every second epoch on val. Each arm changes one setting of the job against
``recipe``, all with the same seeds:

- ``recipe``: the tiny recipe as it is; its warm-up takes at most half of the run.
- ``warm_up``: the warm-up as published, 1000 steps however short the run is: it ends within its warm-up.
- ``first_biases``: biases begin at the learning rate of the weights' peak, not at ten times as much.
- ``ramp``: the average's decay ramps up in 50 steps to 0.98, so that it averages from the first epochs on.
- ``batch_norm``: micro-batches of 8 images, so batch-norm statistics of half the batch.
- ``closing``: the last quarter of the run without mosaic, mixup and paste-in.

Three models are evaluated at each point: the averaged weights, the trained weights, and the trained weights with
batch-norm statistics measured anew on training batches (``measured``: what running statistics that lag behind cost).
The difference of an arm is paired by seed. What is finished is kept in ``--out`` and not done again; a run takes four
minutes of a core.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.models import build_model
from yolofleet.models.weight_differences import load_strictly
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.checkpoint_evaluations import Validation
from yolofleet.training.loop.schedule import Schedule
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import open_dataset, training_stream
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.setup.preparation import run_table
from yolofleet.training.supervision.worker import run_worker

ARMS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "warm_up": {"hyperparameters": {"warmup_most_share": 1000.0}},
    "first_biases": {"hyperparameters": {"warmup_bias_lr": 0.01}},
    "ramp": {"hyperparameters": {"ema_decay": 0.98, "ema_ramp_steps": 50.0}},
    "batch_norm": {"micro_batch_size": 8},
    "closing": {"hyperparameters": {"close_mosaic_share": 0.25}},
}
MODELS = ("average", "trained", "measured")
EVERY_EPOCHS = 2
NUM_MEASURED_STEPS = 8
"""Steps whose micro-batches measure batch-norm statistics anew."""


def build_shards(folder: Path, out: Path) -> None:
    """Build the shards of the train and val parts."""
    for part in ("train", "val"):
        problems = ProblemLog()
        source = parse_coco((folder / f"instances_{part}.json").read_bytes(), str(folder), problems)
        build_dataset(source, open_storage(folder / "images"), open_storage(out / part), BuildOptions(), problems)


def job_of(arm: str, seed: int, out: Path, image_size: int, epochs: float) -> JobSpec:
    """Return the job of a run."""
    document = {
        "name": f"{arm}-{seed}",
        "model": {"name": "yolov7-tiny"},
        "data": {"train": str(out / "train"), "val": str(out / "val"), "image_size": image_size, "loader_threads": 1},
        "recipe": "tiny",
        "epochs": epochs,
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "seed": seed,
        "storage": str(out),
        "evaluation": {"every_epochs": EVERY_EPOCHS},
        "checkpoint": {"every_steps": 10**6, "keep": 1000},
    }
    return JobSpec.parse(document | ARMS[arm], source="benchmark")


def measure_statistics(model: nn.Module, job: JobSpec, step: int) -> None:
    """Replace the batch-norm statistics by their means over the training batches from ``step`` on."""
    dataset = open_dataset(job.data, job.data.train)
    num_steps = job.num_steps(len(dataset))
    schedule = Schedule(job.resolved_hyperparameters(), num_steps, len(dataset) / job.global_batch_size)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # torch then keeps the plain mean
    model.train()
    batches = training_stream(job, dataset, schedule).micro_batches(step, range(job.num_micro_batches))
    with torch.no_grad():
        for _ in range(NUM_MEASURED_STEPS * job.num_micro_batches):
            model(next(batches).images.float() / 255)
    model.eval()


def evaluate_checkpoints(job: JobSpec) -> dict[str, dict[int, dict[str, float | None]]]:
    """Return AP50 and AP of each model at each evaluated step, by model and epoch."""
    run = RunDirectory.open(job.storage, job.name)
    store = CheckpointStore(run.storage.child("checkpoints"))
    dataset = open_dataset(job.data, job.data.train)
    validation = Validation(job, WorkerGroup())
    found: dict[str, dict[int, dict[str, float | None]]] = {name: {} for name in MODELS}
    for step in store.steps():
        epoch = round(step * job.global_batch_size / len(dataset))
        tensors = store.load(step).tensors
        for name in MODELS:
            model = build_model(run_table(job, run), num_classes=len(dataset.classes))
            load_strictly(model, tensors["average" if name == "average" else "weights"])
            if name == "measured":
                measure_statistics(model, job, step)
            figures = validation(model.eval())
            assert figures is not None
            found[name][epoch] = {key: figures[key] for key in ("AP50", "AP")}
    return found


def result_of(arm: str, seed: int, out: Path, image_size: int, epochs: float) -> dict[str, Any]:
    """Train and evaluate one run, from wherever it stands, unless its result is there."""
    job = job_of(arm, seed, out, image_size, epochs)
    kept = out / f"{job.name}.json"
    if not kept.exists():
        if not (ready := check_job(job)).finished:
            run_worker(job, WorkerGroup(), evaluate_apart=True)
        losses = {row["step"]: row["loss"] for row in ready.run.metrics() if "loss" in row}
        kept.write_text(json.dumps({"curves": evaluate_checkpoints(job), "losses": losses}, indent=1) + "\n")
        shutil.rmtree(out / job.name)  # its checkpoints take half a gigabyte
    document: dict[str, Any] = json.loads(kept.read_text())
    return document


def summarise(found: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Return, by arm, model and epoch, the mean AP50 over seeds, its spread, and the gain over ``recipe`` by seed."""
    summary: dict[str, Any] = {}
    for arm, runs in found.items():
        summary[arm] = {"seeds": sorted(runs)}
        for model in MODELS:
            summary[arm][model] = points = {}
            for epoch in next(iter(runs.values()))["curves"][model]:
                values = {seed: run["curves"][model][epoch]["AP50"] or 0.0 for seed, run in runs.items()}
                points[epoch] = describe(list(values.values()))
                shared = [seed for seed in values if seed in found.get("recipe", {})]
                if arm != "recipe" and shared:
                    base = found["recipe"]
                    gains = [values[seed] - (base[seed]["curves"][model][epoch]["AP50"] or 0.0) for seed in shared]
                    points[epoch] |= {f"gain_{key}": value for key, value in describe(gains).items()}
    return summary


def describe(values: list[float]) -> dict[str, float | None]:
    """Return the mean of some values and their standard deviation, which needs two."""
    spread = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 4), "spread": spread}


def main() -> None:
    """Train what is missing, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("YOLOFLEET_TEST_DATA", "../shared/data"))
    parser.add_argument("folder", type=Path, nargs="?", default=data / "bccd")
    parser.add_argument("--out", type=Path, default=Path("runs/early_curve"), help="where runs and shards lie")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", default=",".join(ARMS), help="some of them, with commas between")
    parser.add_argument("--epochs", type=float, default=16.0)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no further run after this long")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    if not (arguments.folder / "instances_train.json").is_file():
        parser.error(f"{arguments.folder}: no instances_train.json here; name a folder, or set YOLOFLEET_TEST_DATA")
    arms = arguments.arms.split(",")
    if unknown := sorted({*arms} - {*ARMS}):
        parser.error(f"--arms: {', '.join(unknown)} is none of {', '.join(ARMS)}")
    logging.getLogger("yolofleet").setLevel(logging.WARNING)
    out = arguments.out.absolute()
    build_shards(arguments.folder, out)
    found: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    began = time.monotonic()
    for seed in range(arguments.seeds):
        for arm in arms:
            if time.monotonic() - began > 60 * arguments.minutes:
                sys.exit(f"stopped before {arm}, seed {seed}; resume with the same command")
            run = result_of(arm, seed, out, arguments.image_size, arguments.epochs)
            found[arm][seed] = run
            ends = {name: max(run["curves"][name].items(), key=lambda point: int(point[0])) for name in MODELS}
            print(f"{arm}, seed {seed}: {ends}", file=sys.stderr, flush=True)
    summary = summarise(found)
    if arguments.json:
        print(json.dumps({"image_size": arguments.image_size, "epochs": arguments.epochs, "arms": summary}, indent=1))
        return
    for arm, models in summary.items():
        for model in MODELS:
            points = ", ".join(
                f"{epoch}: {point['mean']:.3f}" + ("" if point["spread"] is None else f" ({point['spread']:.3f})")
                for epoch, point in models[model].items()
            )
            print(f"{arm:>13} {model:>8}: AP50 by epoch, and its spread over seeds: {points}")


if __name__ == "__main__":
    main()
