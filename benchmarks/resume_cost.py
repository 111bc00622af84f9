"""What it costs to go on in the middle of an epoch: the first micro-batch at an epoch's last step over its first.

    python benchmarks/resume_cost.py [--samples 10000] [--json]

Builds a dataset of small drawn images, then opens it anew for every measurement, as a restarted process does, and
takes the first micro-batch at the first and at the last step of an epoch, taking turns. ``resume_cost`` is the ratio of
the fastest of either, in CPU seconds; ``samples_read`` and ``shards_opened`` show that both read the same amount.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import Sample
from yolofleet.data.stream import TrainingStream
from yolofleet.specs.hyperparameters import Augmentation
from yolofleet.storage import open_storage

SIDE, MICRO_BATCH = 64, 16
NUM_IMAGES = 50


class CountingDataset(ShardDataset):
    """A dataset that notes what is read of it."""

    def __init__(self, url: Path) -> None:
        super().__init__(url)
        self.numbers: list[int] = []

    def read(self, number: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> Sample:
        """Read one sample."""
        self.numbers.append(number)
        return super().read(number, max_pixels)


def built(out: Path, num_samples: int) -> None:
    """Build shards of many samples from a few images."""
    images = out / "pictures"
    images.mkdir()
    generator = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(images / f"{number}.jpg"), cv2.resize(pixels, (SIDE, SIDE * 3 // 4)))
    boxes = range(1, num_samples + 1)
    document = {
        "images": [
            {"id": n, "file_name": f"{n % NUM_IMAGES}.jpg", "width": SIDE, "height": SIDE * 3 // 4} for n in boxes
        ],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [5, 5, 20, 20]} for n in boxes],
        "categories": [{"id": 1, "name": "thing"}],
    }
    problems = ProblemLog()
    source = parse_coco(json.dumps(document).encode(), "drawn", problems)
    build_dataset(source, open_storage(images), open_storage(out / "shards"), BuildOptions(shard_samples=500), problems)


def first_batch(url: Path, step: int) -> tuple[float, int, int]:
    """Open the dataset and make the first micro-batch of a step; return CPU seconds, samples read, shards opened."""
    began = time.process_time()
    dataset = CountingDataset(url)
    stream = TrainingStream(
        dataset,
        seed=0,
        image_size=SIDE,
        global_batch_size=MICRO_BATCH,
        micro_batch_size=MICRO_BATCH,
        augmentation=Augmentation(),
        num_threads=0,
    )
    next(stream.micro_batches(step, [0]))
    seconds = time.process_time() - began
    return seconds, len(dataset.numbers), len({dataset.locate(number)[0] for number in dataset.numbers})


def measure(num_samples: int, rounds: int) -> dict[str, Any]:
    """Measure both places in turn."""
    last = num_samples // MICRO_BATCH - 1
    with tempfile.TemporaryDirectory() as folder:
        built(Path(folder), num_samples)
        url = Path(folder, "shards")
        taken = [[first_batch(url, step) for step in (0, last)] for _ in range(rounds)]
    first, final = (min(turn[place][0] for turn in taken) for place in (0, 1))
    return {
        "resume_cost": round(final / first, 3),
        "first_step_ms": round(1e3 * first, 2),
        "last_step_ms": round(1e3 * final, 2),
        "samples_read": [taken[0][place][1] for place in (0, 1)],
        "shards_opened": [taken[0][place][2] for place in (0, 1)],
        "samples": num_samples,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    if arguments.samples < 2 * MICRO_BATCH:
        parser.error(f"--samples: at least {2 * MICRO_BATCH} are needed")
    found = measure(arguments.samples, arguments.rounds)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:>16} {value}")


if __name__ == "__main__":
    main()
