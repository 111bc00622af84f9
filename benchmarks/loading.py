"""How making micro-batches scales with threads and with processes, as ratios to one thread measured in the same run.

    python benchmarks/loading.py [FOLDER_OF_JPEGS] [--json]

The published augmentation (mosaics of four and nine, mixup, colour, flips) on real images, two cores; at each size:

- ``threads_2_over_1`` and ``processes_2_over_1``: micro-batches a second of two over those of one;
- ``processes_2_over_threads_1``: two processes over one thread, hand-over through shared memory included;
- ``lock_share``: the share of its time in which a thread holds the interpreter lock, as it follows from two threads
  being slower than two processes (`yolofleet.data.loader.forecast_speed`);
- ``forecast``: speeds of 16 and of 96 threads and processes over one thread. Processes are taken to scale as the two
  do, which is a bound: memory may be slower;
- ``start_seconds``: from asking for the first micro-batch to having it, with two threads and two processes;
- ``noise``: the range of the middle half of the rounds' ratios, over their median; the largest of all ratios.

In each of many short rounds the cases take turns, and a ratio is the median of those of the rounds. Other work on these
cores must be kept away (``chrt --rr 1`` does; pauses leave the cores to it).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_path import built
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.loader import Loader, forecast_speed
from yolofleet.data.micro_batch import MicroBatch
from yolofleet.data.stream import TrainingStream
from yolofleet.specs.hyperparameters import merged

MICRO_BATCH = 16
BATCHES_A_ROUND = 6
"""Of each thread or process: about half a second."""
PAUSE_SECONDS = 0.3
Case = tuple[Loader, int]
CASES: tuple[Case, ...] = (("threads", 1), ("threads", 2), ("processes", 1), ("processes", 2))


def micro_batches(shards: Path, image_size: int, loader: Loader, number: int) -> Iterator[MicroBatch]:
    """Return the micro-batches of a stream with the published augmentation."""
    stream = TrainingStream(
        ShardDataset(shards),
        seed=0,
        image_size=image_size,
        global_batch_size=MICRO_BATCH,
        micro_batch_size=MICRO_BATCH,
        augmentation=merged("p5", {}),
        num_threads=number,
        loader=loader,
    )
    return stream.micro_batches(0, [0])


def measure_rates(
    shards: Path, image_size: int, rounds: int
) -> tuple[dict[Case, NDArray[np.float64]], dict[str, float]]:
    """Return micro-batches a second of each case, (rounds,) each, and the seconds to the first one by two of a kind."""
    rates: dict[Case, list[float]] = {case: [] for case in CASES}
    start: dict[str, float] = {}
    with ExitStack() as stack:
        streams: dict[Case, Iterator[MicroBatch]] = {}
        for case in CASES:
            began = time.perf_counter()
            batches = stack.enter_context(closing(micro_batches(shards, image_size, *case)))  # type: ignore[type-var]
            next(batches)
            start[case[0]] = round(time.perf_counter() - began, 2)
            streams[case] = batches
        for _ in range(rounds):
            for case, batches in streams.items():
                time.sleep(PAUSE_SECONDS)
                for _ in itertools.islice(batches, 2 * case[1] + 1):
                    pass  # made while the other cases took their turns
                count = case[1] * BATCHES_A_ROUND
                began = time.perf_counter()
                for _ in itertools.islice(batches, count):
                    pass
                rates[case].append(count / (time.perf_counter() - began))
    return {case: np.array(values) for case, values in rates.items()}, start


def measure_size(shards: Path, image_size: int, rounds: int) -> dict[str, Any]:
    """Measure all cases at one image size."""
    rates, start = measure_rates(shards, image_size, rounds)
    one_thread, two_threads, one_process, two_processes = (rates[case] for case in CASES)
    ratios = {
        "threads_2_over_1": two_threads / one_thread,
        "processes_2_over_1": two_processes / one_process,
        "processes_2_over_threads_1": two_processes / one_thread,
    }
    medians = {name: float(np.median(values)) for name, values in ratios.items()}
    share = lock_share(2 * float(np.median(two_threads / two_processes)))
    speeds = {
        f"{kind}_{cores}": round(speed, 1)
        for cores in (16, 96)
        for kind, speed in (
            ("threads", forecast_speed(cores, share)),
            ("processes", cores * min(1.0, medians["processes_2_over_threads_1"] / 2)),
        )
    }
    spreads = [np.subtract(*np.quantile(values, [0.75, 0.25])) / np.median(values) for values in ratios.values()]
    return {
        **{name: round(value, 2) for name, value in medians.items()},
        "lock_share": round(share, 2),
        "forecast": speeds,
        "start_seconds": start,
        "images_per_second": {
            f"{kind}_{number}": round(MICRO_BATCH * max(rates[kind, number])) for kind, number in CASES
        },
        "noise": round(float(max(spreads)), 2),
    }


def lock_share(speed: float) -> float:
    """Return the share of the lock with which two threads have this speed: the inverse of `forecast_speed` at two."""
    return math.sqrt(2 / min(2.0, speed) - 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("YOLOFLEET_TEST_DATA", "../shared/data"))
    parser.add_argument("folder", type=Path, nargs="?", default=data / "coco128" / "images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[640, 320], metavar="PIXELS")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is no folder; name one with JPEGs, or set YOLOFLEET_TEST_DATA")
    with tempfile.TemporaryDirectory() as out:
        built(arguments.folder, Path(out))
        found = {str(size): measure_size(Path(out), size, arguments.rounds) for size in arguments.sizes}
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for size, figures in found.items():
            print(f"{size} pixels")
            for name, value in figures.items():
                print(f"{name:>28} {value}")


if __name__ == "__main__":
    main()
