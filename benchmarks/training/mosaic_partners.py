"""What it costs to take mosaic partners from the micro-batch instead of from the whole dataset, in AP.

    python benchmarks/training/mosaic_partners.py [FOLDER] [--out DIR] [--seeds 3] [--minutes M] [--json]

Trains a narrow YOLOv7-tiny on real images (FOLDER holds ``images/``, ``instances_train.json``, ``instances_val.json``
and, if there is one, ``instances_test.json``) in two arms, each with the same seeds, job, order and schedule:

- ``micro_batch``: the product. The partners of a mosaic, of mixup and of pasted objects are the other samples of the
  micro-batch, so every image is decoded once a step.
- ``free``: as published. Every sample draws partners of its own from the whole dataset. This order exists only here.

AP is that of the averaged weights after the last step, on images that were never trained on. ``cost`` is how much
lower the mean of ``micro_batch`` is; it counts as nothing while it is within the spread of equal runs, which is the
standard deviation between seeds, pooled over both arms. Every run has a run directory of its own below ``--out``: what
is finished is not done again, what was stopped goes on. With ``--minutes`` the script stops by itself after the first
run that ends later than that.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from yolofleet.data.augment import Augmenter
from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.micro_batch import MicroBatch, MicroBatchPlan
from yolofleet.data.order import Purpose, keyed_generator
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import LabelledImage, labelled_image
from yolofleet.data.stream import TrainingStream
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.training.loop import trainer
from yolofleet.training.loop.schedule import Schedule
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import training_stream
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_worker

ARMS = ("micro_batch", "free")
NUM_FREE_PARTNERS = 17
"""Enough for two mosaics of nine (the second one for mixup) without an image twice."""
JOB: dict[str, Any] = {
    "model": {"name": "yolov7-tiny", "transition_width": 0.5, "hidden_width": 0.5},
    "recipe": "tiny",
    "hyperparameters": {
        "lr0": 0.04,
        "lrf": 0.05,
        "warmup_epochs": 3.0,
        "warmup_min_steps": 30,
        "ema_decay": 0.99,
        "ema_ramp_steps": 50,
    },
    "global_batch_size": 16,
    "micro_batch_size": 8,
    "evaluation": {"every_epochs": 20},
    "checkpoint": {"every_steps": 200, "keep": 1},
}


class FreePartners:
    """Makes the micro-batches of the product's order, but with partners from the whole dataset for every sample."""

    def __init__(self, dataset: ShardDataset, stream: TrainingStream, seed: int) -> None:
        self._dataset = dataset
        self._order = stream.order
        self._seed = seed
        self._image = lru_cache(maxsize=None)(self._decoded)  # the images are small; the free arm needs them often

    def _decoded(self, number: int) -> LabelledImage:
        sample = self._dataset.read_decoded(number)
        return labelled_image(sample.key, sample.pixels, sample.record, len(self._dataset.classes))

    def _own(self, plan: MicroBatchPlan, slot: int) -> LabelledImage:
        shard, row = self._order.locate(plan.index, plan.position + slot)
        return self._image(int(self._dataset.shard_starts[shard]) + row)

    def make(self, plan: MicroBatchPlan) -> MicroBatch:
        """Make one micro-batch, as ``MicroBatchMaker.make`` does."""
        side = plan.image_size
        images = np.empty((plan.size, 3, side, side), dtype=np.uint8)
        augmenter = Augmenter(plan.augmentation, side)
        targets, keys = [], []
        for slot in range(plan.size):
            generator = keyed_generator(self._seed, Purpose.AUGMENTATION, plan.number + slot)
            partners = generator.choice(len(self._dataset), NUM_FREE_PARTNERS, replace=False)
            labelled_images = [self._own(plan, slot), *(self._image(int(number)) for number in partners)]
            found = augmenter.augment(0, labelled_images, generator, images[slot]).normalised(side)  # (n, 5)
            targets.append(np.insert(found, 0, slot, axis=1))
            keys.append(labelled_images[0].key)
        boxes = torch.from_numpy(np.concatenate(targets).astype(np.float32))
        return MicroBatch(plan.step, plan.index, torch.from_numpy(images), boxes, tuple(keys))


def free_stream(job: JobSpec, dataset: ShardDataset, schedule: Schedule, *kept: Any) -> TrainingStream:
    """Return the job's training stream with free partners."""
    stream = training_stream(job, dataset, schedule, *kept)
    stream._maker = FreePartners(dataset, stream, job.seed)  # type: ignore[assignment]  # FreePartners for MicroBatchMaker
    return stream


def built(folder: Path, out: Path, parts: list[str], longest_side: int) -> None:
    """Build shards of one or more annotation files of a folder, unless they are there."""
    documents = [json.loads((folder / f"instances_{part}.json").read_bytes()) for part in parts]
    joined = documents[0] | {
        "images": [image for document in documents for image in document["images"]],
        "annotations": [
            annotation | {"id": number}
            for number, annotation in enumerate(
                (annotation for document in documents for annotation in document["annotations"]), start=1
            )
        ],
    }
    problems = ProblemLog()
    source = parse_coco(json.dumps(joined).encode(), str(folder), problems)
    options = BuildOptions(reencode_quality=92, longest_side=longest_side)
    build_dataset(source, open_storage(folder / "images"), open_storage(out), options, problems)


def trained(arm: str, seed: int, out: Path, image_size: int, epochs: float) -> dict[str, float]:
    """Train one run to its end, from wherever it stands, and return its last evaluation."""
    data = {"train": str(out / "train"), "val": str(out / "val"), "image_size": image_size, "loader_threads": 1}
    document = JOB | {"name": f"{arm}-{seed}", "seed": seed, "data": data, "epochs": epochs, "storage": str(out)}
    job = JobSpec.parse(document, source="benchmark")
    ready = check_job(job)
    if not ready.finished:
        make_stream = free_stream if arm == "free" else training_stream
        with mock.patch.object(trainer, "training_stream", make_stream):
            run_worker(job, WorkerGroup())
    judged = [row for row in ready.run.metrics() if "val_AP" in row]
    return {name: float(judged[-1][f"val_{name}"]) for name in ("AP", "AP50", "AP75")}


def verdict(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Compare the arms by the AP of their runs."""
    values = {arm: [run["AP"] for run in found[arm]] for arm in ARMS}
    means = {arm: statistics.mean(values[arm]) for arm in ARMS}
    spread = math.sqrt(statistics.mean(statistics.variance(values[arm]) for arm in ARMS))
    cost = means["free"] - means["micro_batch"]
    return {
        "mean_ap": {arm: round(mean, 4) for arm, mean in means.items()},
        "spread": round(spread, 4),
        "cost": round(cost, 4),
        "within_spread": cost <= spread,
    }


def main() -> None:
    """Train what is missing, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("YOLOFLEET_TEST_DATA", "../shared/data"))
    parser.add_argument("folder", type=Path, nargs="?", default=data / "bccd")
    parser.add_argument("--out", type=Path, default=Path("runs/mosaic_partners"), help="where runs and shards lie")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=60.0)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no further run after this long")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    if not (arguments.folder / "instances_train.json").is_file():
        parser.error(f"{arguments.folder}: no instances_train.json here; name a folder, or set YOLOFLEET_TEST_DATA")
    if arguments.seeds < 2:
        parser.error("--seeds: at least 2 are needed for a spread")
    logging.getLogger("yolofleet").setLevel(logging.WARNING)
    out = arguments.out.absolute()
    held_out = ["val", "test"] if (arguments.folder / "instances_test.json").is_file() else ["val"]
    built(arguments.folder, out / "train", ["train"], arguments.image_size)
    built(arguments.folder, out / "val", held_out, arguments.image_size)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    began = time.monotonic()
    for seed in range(arguments.seeds):
        for arm in ARMS:
            if time.monotonic() - began > 60 * arguments.minutes:
                sys.exit(f"stopped before {arm}, seed {seed}; resume with the same command")
            found[arm].append(trained(arm, seed, out, arguments.image_size, arguments.epochs))
            print(f"{arm}, seed {seed}: {found[arm][-1]}", file=sys.stderr, flush=True)
    result = verdict(found) | {"runs": found, "image_size": arguments.image_size, "epochs": arguments.epochs}
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for arm in ARMS:
        each = ", ".join(f"{run['AP']:.4f}" for run in found[arm])
        print(f"{arm:>12}: AP {result['mean_ap'][arm]:.4f} ({each})")
    judged = "within" if result["within_spread"] else "more than"
    print(f"partners from the micro-batch cost {result['cost']:+.4f} AP, {judged} the spread of {result['spread']:.4f}")


if __name__ == "__main__":
    main()
