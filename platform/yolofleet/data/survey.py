"""The sizes and classes of a dataset's boxes, read from its annotations alone: no image is fetched or decoded."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.dataset import ShardDataset
from yolofleet.data.records import ImageRecord, RecordError

REMOTE_THREADS = 32
LOCAL_THREADS = 1


@dataclass(frozen=True)
class Survey:
    """Every box that training may see (crowds and boxes without area left out), one row each."""

    sizes: NDArray[np.float64]
    """(n, 2) float64 width and height as shares of the image's longer side."""
    classes: NDArray[np.int64]
    """(n,) int64 class indices."""
    samples: NDArray[np.int64]
    """(n,) int64 numbers of the samples that hold them."""
    num_surveyed: int
    """Samples that were read."""
    num_samples: int
    """Samples of the dataset."""


def survey_boxes(dataset: ShardDataset, most_samples: int | None = None) -> Survey:
    """Read annotations: all, or ``most_samples`` of them spread evenly over the dataset.

    Raises:
        StorageError: A shard or an index cannot be read.
    """
    total = len(dataset)
    count = total if most_samples is None else min(most_samples, total)
    numbers = (np.arange(count) * total) // max(count, 1)
    sizes, classes, samples = [np.empty((0, 2))], [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for number, record in _records(dataset, numbers):
        longer = max(record.width, record.height)
        has_class = (record.classes >= 0) & (record.classes < len(dataset.classes))
        kept = ~record.iscrowd & has_class & (record.boxes[:, 2:] > 0).all(axis=1)
        if longer and kept.any():
            sizes.append(record.boxes[kept, 2:] / longer)
            classes.append(record.classes[kept])
            samples.append(np.full(int(kept.sum()), number, dtype=np.int64))
    return Survey(np.concatenate(sizes), np.concatenate(classes), np.concatenate(samples), count, total)


def _records(dataset: ShardDataset, numbers: NDArray[np.int64]) -> Iterator[tuple[int, ImageRecord]]:
    """Yield number and annotation of samples, in order; damaged ones are left out (reading the image counts them)."""
    is_local = dataset.storage.local_path(dataset.manifest.shards[0].tar_key) is not None
    num_threads = LOCAL_THREADS if is_local else REMOTE_THREADS
    with ThreadPoolExecutor(num_threads, thread_name_prefix="survey") as pool:
        for chunk in _chunks(numbers.tolist(), 64 * num_threads):
            for number, record in zip(chunk, pool.map(lambda n: _record(dataset, n), chunk), strict=True):
                if record is not None:
                    yield number, record


def _chunks(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _record(dataset: ShardDataset, number: int) -> ImageRecord | None:
    shard, row = dataset.locate(number)
    index = dataset.index(shard)
    if row >= len(index):
        return None
    entry = index.rows[row]
    key = dataset.manifest.shards[shard].tar_key
    data = dataset.storage.get_range(key, int(entry["json_offset"]), int(entry["json_bytes"]))
    try:
        return ImageRecord.from_json(data)
    except RecordError:
        return None
