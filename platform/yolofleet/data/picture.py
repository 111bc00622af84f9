"""A decoded picture with its training targets."""

from __future__ import annotations

from dataclasses import dataclass

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
    boxes = np.concatenate([record.boxes[:, :2], record.boxes[:, :2] + record.boxes[:, 2:]], axis=1)
    boxes = np.clip(boxes, 0, (width, height, width, height))
    has_class = (record.classes >= 0) & (record.classes < num_classes)
    kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1) & ~record.iscrowd & has_class)
    outlines = Outlines.of([record.segmentations[int(index)] for index in kept])
    return Picture(key, pixels, boxes[kept], record.classes[kept], outlines)
