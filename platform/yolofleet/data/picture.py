"""A decoded picture with its training targets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.outlines import Outlines
from yolofleet.data.records import ImageRecord


@dataclass(frozen=True)
class Picture:
    """A decoded picture with the objects that may become targets: no crowds, all boxes inside.

    Attributes:
        key: Key of its sample.
        pixels: (height, width, 3) uint8 RGB.
        boxes: (n, 4) float64 x1, y1, x2, y2 in pixels.
        classes: (n,) int64 class indices.
        outlines: The polygons of the objects that have any.
    """

    key: str
    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    outlines: Outlines

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def picture_from_record(key: str, pixels: NDArray[np.uint8], record: ImageRecord, num_classes: int) -> Picture:
    """Return the picture with its targets; boxes are clipped to it, and what has no area or no class is left out."""
    height, width = pixels.shape[:2]
    boxes = record.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.minimum(np.maximum(boxes, 0.0), np.array((width, height, width, height), dtype=np.float64))
    is_target = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & ~record.iscrowd
    is_target &= (record.classes >= 0) & (record.classes < num_classes)
    if is_target.all():
        return Picture(key, pixels, boxes, record.classes, Outlines.of(record.segmentations))
    segmentations = list(compress(record.segmentations, is_target))
    return Picture(key, pixels, boxes[is_target], record.classes[is_target], Outlines.of(segmentations))
