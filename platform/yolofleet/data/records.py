"""An image and its objects: as a record of its dataset, and decoded with its training targets.

A record is the common form of all sources. A box that is cut by the edge of a mosaic's cell or of the output is too
large, because the object's part inside may be smaller. Where the source has polygons, the box of a cut object is that
of the polygon's part inside the window, computed exactly from its edges. (The published augmentation samples 1000
points of the outline and keeps those inside. The result is the same, except for a window within the object: there it
finds nothing, and this finds the window.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError

MOST_WHOLE_NUMBER = 2**53 - 1
"""The largest id or count: JSON, JavaScript and float64 hold every whole number up to it."""
Segmentation = list[list[float]] | dict[str, Any] | None
"""Polygons (flat lists x, y, x, y, ... in pixels), an RLE as COCO writes it, or nothing."""


@dataclass(frozen=True)
class ObjectClass:
    """A class of objects: the category id of its source, and its name. Its index is its position in the list."""

    id: int
    name: str


@dataclass(frozen=True)
class ImageRecord:
    """One image and its objects."""

    image_id: int
    """Id of the image, unique in its dataset."""
    file_name: str
    """Name in the source, for people."""
    width: int
    """Pixels; 0 while it is not known."""
    height: int
    """Pixels; 0 while it is not known."""
    boxes: NDArray[np.float64]
    """(n, 4) float64: x, y of the top left corner, width, height, in pixels of the image."""
    classes: NDArray[np.int64]
    """(n,) int64 class indices."""
    iscrowd: NDArray[np.bool_]
    """(n,) bool; a crowd is no training target and an ignore region in evaluation."""
    areas: NDArray[np.float64]
    """(n,) float64 square pixels, of the object's mask where the source knows it."""
    segmentations: tuple[Segmentation, ...]
    """For each object its polygons, its RLE, or None."""
    upright: bool | None = None
    """Whether the record speaks of the image as its EXIF orientation shows it, or as stored; None where the image has
    none, or where that is not known yet (`check_image` finds out)."""

    @property
    def way_up(self) -> bool | tuple[int, int]:
        """What `decode_image` needs to show the image as the record speaks of it; an older record has its size only."""
        return (self.width, self.height) if self.upright is None and self.width else self.upright is not False

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
            self.upright,
        )

    def scaled_to(self, width: int, height: int) -> ImageRecord:
        """Return the record of this image at another size; an RLE counts the old pixels and is left out."""
        if (self.width, self.height) == (width, height):
            return self
        gains = np.array((width / self.width, height / self.height))
        return replace(
            self,
            width=width,
            height=height,
            boxes=self.boxes * np.tile(gains, 2),
            areas=self.areas * gains.prod(),
            segmentations=tuple(
                [(np.reshape(polygon, (-1, 2)) * gains).ravel().tolist() for polygon in entry]
                if isinstance(entry, list)
                else None
                for entry in self.segmentations
            ),
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
        if self.upright is not None:
            document["upright"] = self.upright
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class Outlines:
    """The edges of all polygons of an image."""

    ends: NDArray[np.float64]
    """(e, 2, 2) first and last point of each edge, in pixels."""
    owners: NDArray[np.int64]
    """(e,) number of the object that an edge belongs to, rising."""
    has_polygon: NDArray[np.bool_]
    """(n,) for each object whether it has any edges."""

    @staticmethod
    def of(segmentations: Sequence[Segmentation]) -> Outlines:
        """Collect the edges of every object's polygons; an RLE or nothing at all gives none."""
        has_polygon = np.array([isinstance(entry, list) for entry in segmentations], dtype=np.bool_)
        polygons: list[list[float]] = []
        numbers: list[int] = []
        for number, segmentation in enumerate(segmentations):
            if isinstance(segmentation, list):
                polygons += segmentation
                numbers += [number] * len(segmentation)
        if not polygons:
            return Outlines(np.empty((0, 2, 2)), np.empty(0, dtype=np.int64), has_polygon)
        points = np.fromiter(chain.from_iterable(polygons), dtype=np.float64).reshape(-1, 2)
        counts = np.array([len(polygon) // 2 for polygon in polygons], dtype=np.int64)
        following = np.arange(1, len(points) + 1)
        last_points = np.cumsum(counts)
        following[last_points - 1] = last_points - counts  # a polygon ends where it began
        ends = np.stack([points, points[following]], axis=1)
        return Outlines(ends, np.repeat(np.array(numbers, dtype=np.int64), counts), has_polygon)

    def polygons(self, number: int) -> list[NDArray[np.float64]]:
        """Return the polygons of an object, each (points, 2): edges that follow each other belong together."""
        own = self.owners == number
        starts, ends = self.ends[own, 0], self.ends[own, 1]
        breaks = np.flatnonzero((starts[1:] != ends[:-1]).any(axis=1)) + 1
        return np.split(starts, breaks)


def boxes_inside(
    edges: NDArray[np.float64], owners: NDArray[np.int64], windows: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the boxes around the visible parts of objects, each in its own window.

    Args:
        edges: (e, 2, 2) first and last points of the edges of all objects' polygons.
        owners: (e,) a number for each object, rising; every object has an edge.
        windows: (k, 4) x1, y1, x2, y2 for each of the objects.

    Returns:
        (k, 4) x1, y1, x2, y2; all zero where nothing is visible.
    """
    # A visible part reaches as far as the edges inside its window, and to the window's corners inside the polygon.
    first, last = edges[:, 0], edges[:, 1]
    groups = np.flatnonzero(np.diff(owners, prepend=-1))  # where each object's edges begin
    counts = np.diff(groups, append=len(owners))
    window = np.repeat(windows, counts, axis=0)  # (e, 4)
    inside, enters, leaves = _clipped(first, last, window[:, :2], window[:, 2:])
    low = np.where(inside, np.minimum(enters, leaves), np.inf)
    high = np.where(inside, np.maximum(enters, leaves), -np.inf)
    corner_columns = [[0, 1], [2, 1], [2, 3], [0, 3]]
    corners = windows[:, corner_columns].transpose(1, 0, 2)  # (4, k, 2)
    crossings = _crossings(first, last, window[:, corner_columns].transpose(1, 0, 2))  # (4, e)
    holds = np.logical_xor.reduceat(crossings, groups, axis=1)[:, :, None]  # (4, k, 1) corner in object
    low = np.minimum(np.minimum.reduceat(low, groups), np.where(holds, corners, np.inf).min(axis=0))
    high = np.maximum(np.maximum.reduceat(high, groups), np.where(holds, corners, -np.inf).max(axis=0))
    boxes = np.concatenate([low, high], axis=1)
    boxes[~np.isfinite(boxes).all(axis=1)] = 0.0
    return boxes


def _clipped(
    first: NDArray[np.float64], last: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Clip edges to a window each, from ``low`` (e, 2) to ``high`` (e, 2) (Liang and Barsky, 1984).

    Returns:
        (e, 1) whether any part of the edge is inside, and (e, 2) each, the ends of that part.
    """
    # An edge is first + t * along, t in [0, 1]; find the t at which it enters and leaves the window on each axis.
    along = last - first
    parallel = along == 0
    along_or_one = np.where(parallel, 1.0, along)
    at_low, at_high = (low - first) / along_or_one, (high - first) / along_or_one
    outside = parallel & ((at_low > 0) | (at_high < 0))  # beside the window for its whole length
    enter = np.where(parallel, 0.0, np.minimum(at_low, at_high)).max(axis=1, keepdims=True)
    leave = np.where(parallel, 1.0, np.maximum(at_low, at_high)).min(axis=1, keepdims=True)
    enter, leave = np.maximum(enter, 0.0), np.minimum(leave, 1.0)
    inside = ~outside.any(axis=1, keepdims=True) & (enter <= leave)
    return inside, first + enter * along, first + leave * along


def _crossings(first: NDArray[np.float64], last: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (p, e): whether rays to the right from points (p, e, 2) cross the edges. An odd number means inside."""
    x, y = points[..., 0], points[..., 1]
    spans = (first[:, 1] > y) != (last[:, 1] > y)
    rise = np.where(first[:, 1] == last[:, 1], 1.0, last[:, 1] - first[:, 1])
    crossing = first[:, 0] + (y - first[:, 1]) / rise * (last[:, 0] - first[:, 0])
    return np.asarray(spans & (x < crossing))


@dataclass(frozen=True)
class LabelledImage:
    """A decoded image with the objects that may become targets: no crowds, all boxes inside."""

    key: str
    """Key of its sample."""
    pixels: NDArray[np.uint8]
    """(height, width, 3) uint8 RGB."""
    boxes: NDArray[np.float64]
    """(n, 4) float64 x1, y1, x2, y2 in pixels."""
    classes: NDArray[np.int64]
    """(n,) int64 class indices."""
    outlines: Outlines
    """The polygons of the objects that have any."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def target_boxes(
    record: ImageRecord, size: tuple[int, int], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the boxes, x1, y1, x2, y2 (n, 4) clipped to an image of (width, height), and which of them are targets.

    Crowds are none, nor are boxes without area or class.
    """
    boxes = record.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.minimum(np.maximum(boxes, 0.0), np.array(size * 2, dtype=np.float64))
    is_target = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & ~record.iscrowd
    return boxes, is_target & (record.classes >= 0) & (record.classes < num_classes)


def labelled_image(
    key: str, pixels: NDArray[np.uint8], record: ImageRecord, num_classes: int, size: tuple[int, int] | None = None
) -> LabelledImage:
    """Return the image with its targets; boxes are clipped to it, those without area or class are left out.

    Args:
        key: Key of the sample.
        pixels: (height, width, 3) uint8 RGB.
        record: The annotation.
        num_classes: Classes of the dataset.
        size: (width, height) that the annotation speaks of, where the pixels were decoded at a reduced size.
    """
    height, width = pixels.shape[:2]
    full_width, full_height = size or (width, height)
    boxes, is_target = target_boxes(record, (full_width, full_height), num_classes)
    outlines = Outlines.of(list(compress(record.segmentations, is_target)))
    boxes, classes = boxes[is_target], record.classes[is_target]
    if (full_width, full_height) != (width, height):
        gain = np.array((width / full_width, height / full_height))
        boxes, outlines = boxes * np.tile(gain, 2), replace(outlines, ends=outlines.ends * gain)
    return LabelledImage(key, pixels, boxes, classes, outlines)


class SampleError(UserError):
    """One sample cannot be used; ``reason`` is a short word to count it by, ``key`` names the sample."""

    def __init__(self, reason: str, message: str, key: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.key = key


class Sample(NamedTuple):
    """One sample as stored in its shard: encoded image and annotation."""

    key: str
    image: bytes
    annotation: bytes


class DecodedSample(NamedTuple):
    """One sample, its image decoded in full or at a reduced size."""

    key: str
    record: ImageRecord
    pixels: NDArray[np.uint8]
    """(height, width, 3) uint8 RGB, the way up that the record speaks of."""
    size: tuple[int, int]
    """(width, height) of the image in full."""
