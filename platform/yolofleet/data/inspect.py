"""Inspection of a dataset of shards: every digest verified, every annotation read, counts and histograms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolofleet.data.dataset import ShardDataset
from yolofleet.data.histograms import OBJECTS_EDGES, SIDE_EDGES
from yolofleet.data.manifest import IndexFormatError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord
from yolofleet.data.sample import SampleError
from yolofleet.data.verification import digest_problems
from yolofleet.storage import ObjectNotFoundError


@dataclass
class Inspection:
    """The content of a dataset, counted by reading all of it."""

    num_images: int = 0
    """Samples that can be read."""
    class_counts: dict[str, int] = field(default_factory=dict)
    """Boxes by class, crowds left out."""
    num_crowds: int = 0
    """Crowd regions."""
    objects_per_image: dict[str, int] = field(default_factory=dict)
    """Images by number of boxes; key "4" stands for 4 to 7 and so on."""
    box_sides: dict[str, int] = field(default_factory=dict)
    """Boxes by the square root of their area in pixels, in the same way."""
    image_sizes: dict[str, int] = field(default_factory=dict)
    """Images by "WIDTHxHEIGHT", the commonest first."""
    problems: ProblemLog = field(default_factory=ProblemLog)
    """Damage, counted by kind."""

    def as_document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "num_images": self.num_images,
            "num_boxes": sum(self.class_counts.values()),
            "num_crowds": self.num_crowds,
            "class_counts": self.class_counts,
            "objects_per_image": self.objects_per_image,
            "box_sides": self.box_sides,
            "image_sizes": dict(sorted(self.image_sizes.items(), key=lambda item: -item[1])[:20]),
            "problems": self.problems.as_document(),
        }


def inspect_dataset(
    dataset: ShardDataset, *, verify: bool = True, progress: Callable[[int], None] = lambda count: None
) -> Inspection:
    """Read a whole dataset.

    Args:
        dataset: The dataset.
        verify: Compare the bytes of every shard and index with the manifest.
        progress: Called for every shard with its number of samples.
    """
    found = Inspection(class_counts={name: 0 for _, name in dataset.classes})
    names = [name for _, name in dataset.classes]
    for shard, entry in enumerate(dataset.manifest.shards):
        if verify:
            for problem in digest_problems(dataset, entry):
                found.problems.add("shard_damaged", f"{dataset.storage.url}/{problem}")
        start = int(dataset.shard_starts[shard])
        for number in range(start, start + entry.samples):
            where = f"{entry.name}, sample {number - start}"
            try:
                _count(dataset.read_record(number)[1], names, found)
            except SampleError as error:
                found.problems.add(error.reason, f"{where}: {error}")
            except (ObjectNotFoundError, IndexFormatError) as error:
                found.problems.add("shard_damaged", str(error))
                break
        progress(entry.samples)
    return found


def _count(record: ImageRecord, names: list[str], found: Inspection) -> None:
    targets = np.flatnonzero(~record.iscrowd)
    found.num_images += 1
    found.num_crowds += len(record.iscrowd) - len(targets)
    _increase(found.objects_per_image, _bin(len(targets), OBJECTS_EDGES))
    _increase(found.image_sizes, f"{record.width}x{record.height}")
    for index in targets:
        _increase(found.class_counts, names[int(record.classes[index])])
        side = float(np.sqrt(record.boxes[index, 2] * record.boxes[index, 3]))
        _increase(found.box_sides, _bin(side, SIDE_EDGES))


def _bin(value: float, edges: tuple[int, ...]) -> str:
    return str(max(edge for edge in edges if edge <= value))


def _increase(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
