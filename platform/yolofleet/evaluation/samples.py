"""Sample pictures of an evaluation: what is there beside what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from yolofleet.data.dataset import SampleError, ShardDataset
from yolofleet.data.decode import ImageError
from yolofleet.data.records import RecordError
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.draw import MARGIN, draw_detections, encode

GAP = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePicture:
    """One picture twice: left with its ground truth, right with the detections.

    Attributes:
        name: its name in the dataset's source.
        jpeg: the encoded picture.
        width: of it, in pixels.
        height: of it, in pixels.
    """

    name: str
    jpeg: bytes
    width: int
    height: int


def draw_samples(
    dataset: ShardDataset, detections: Detections, *, count: int = 8, confidence: float = 0.25, side: int = 640
) -> list[SamplePicture]:
    """Draws some pictures of a dataset, evenly spread over it.

    Args:
        dataset: the pictures and their objects.
        detections: what was found in them.
        count: how many pictures.
        confidence: lowest score drawn.
        side: longest side of each half in pixels.

    Returns:
        At most `count` pictures; one that cannot be read is left out.
    """
    names = dict(dataset.classes)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    samples = []
    for number in numbers.tolist():
        try:
            sample = dataset.read(number)
            record = sample.record()
            pixels = sample.pixels(record)
        except (SampleError, RecordError, ImageError):  # evaluation has counted and named it already
            continue
        objects = [
            {"category_id": dataset.classes[int(index)][0], "bbox": box, "iscrowd": bool(crowd)}
            for index, box, crowd in zip(record.classes, record.boxes.tolist(), record.iscrowd, strict=True)
        ]
        found = _records(detections, record.image_id, confidence)
        halves = [draw_detections(pixels, records, names=names) for records in (objects, found)]
        both = _beside(halves, side)
        samples.append(SamplePicture(name=record.file_name, jpeg=encode(both), width=both.width, height=both.height))
    return samples


def _records(detections: Detections, image_id: int, confidence: float) -> list[dict[str, Any]]:
    rows = np.flatnonzero((detections.image_ids == image_id) & (detections.scores >= confidence))
    return [
        {
            "category_id": int(detections.category_ids[row]),
            "bbox": detections.boxes[row].tolist(),
            "score": float(detections.scores[row]),
        }
        for row in rows
    ]


def _beside(pictures: Sequence[Image.Image], side: int) -> Image.Image:
    """Pictures of one size in a row, none with a side above `side`."""
    scale = min(1.0, side / max(pictures[0].size))
    width, height = (max(1, round(length * scale)) for length in pictures[0].size)
    row = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), MARGIN)
    for place, picture in enumerate(pictures):
        row.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (place * (width + GAP), 0))
    return row
