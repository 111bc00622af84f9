"""What is known of one picture and its objects, after every check: the form in which all sources are brought."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.errors import UserError

Segmentation = list[list[float]] | dict[str, Any] | None
"""Polygons (flat lists x, y, x, y, ... in pixels), an RLE as COCO writes it, or nothing."""


@dataclass(frozen=True)
class ObjectClass:
    """A class of objects: the category id of its source, and its name. Its index is its place in the list."""

    id: int
    name: str


@dataclass(frozen=True)
class ImageRecord:
    """One picture and its objects.

    Attributes:
        image_id: Id of the picture, unique in its dataset.
        file_name: Name in the source, for people.
        width: Pixels; 0 while it is not known.
        height: Pixels; 0 while it is not known.
        boxes: (n, 4) float64: x, y of the top left corner, width, height, in pixels of the picture.
        classes: (n,) int64 class indices.
        iscrowd: (n,) bool; a crowd is no training target and an ignore region in evaluation.
        areas: (n,) float64 square pixels, of the object's mask where the source knows it.
        segmentations: For each object its polygons, its RLE, or None.
    """

    image_id: int
    file_name: str
    width: int
    height: int
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    segmentations: tuple[Segmentation, ...]

    def select(self, kept: Sequence[int]) -> ImageRecord:
        """Return the record with these of its objects."""
        index = np.asarray(kept, dtype=np.int64)
        return ImageRecord(
            self.image_id,
            self.file_name,
            self.width,
            self.height,
            self.boxes[index].reshape(-1, 4),
            self.classes[index],
            self.iscrowd[index],
            self.areas[index],
            tuple(self.segmentations[int(i)] for i in kept),
        )

    def to_json(self) -> bytes:
        """Return the record as ``KEY.json`` holds it: compact, one column per property, floats exact."""
        document: dict[str, Any] = {
            "image_id": self.image_id,
            "file_name": self.file_name,
            "width": self.width,
            "height": self.height,
            "boxes": self.boxes.tolist(),
            "classes": self.classes.tolist(),
            "iscrowd": self.iscrowd.astype(int).tolist(),
            "areas": self.areas.tolist(),
        }
        if any(segmentation is not None for segmentation in self.segmentations):
            document["segmentations"] = list(self.segmentations)
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    @staticmethod
    def from_json(data: bytes) -> ImageRecord:
        """Read ``KEY.json`` back.

        Raises:
            RecordError: It is no such record.
        """
        try:
            document = json.loads(data)
            boxes = np.asarray(document["boxes"], dtype=np.float64).reshape(-1, 4)
            count = len(boxes)
            record = ImageRecord(
                int(document["image_id"]),
                str(document["file_name"]),
                int(document["width"]),
                int(document["height"]),
                boxes,
                np.asarray(document["classes"], dtype=np.int64).reshape(count),
                np.asarray(document["iscrowd"], dtype=np.bool_).reshape(count),
                np.asarray(document["areas"], dtype=np.float64).reshape(count),
                tuple(document.get("segmentations") or (None,) * count),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise RecordError(f"the annotation is damaged: {type(error).__name__}: {error}") from error
        if len(record.segmentations) != count or not math.isfinite(float(boxes.sum())):
            raise RecordError("the annotation is damaged: its columns do not fit together")
        return record


class RecordError(UserError):
    """The JSON of a sample is damaged."""
