"""What the boxes and ids of a result file mean, tried on the ground truth.

Boxes may be corners or shares of the image, class ids may count from 0, image ids may be positions in a list. Nothing
in the file says so, and read in COCO's way it has an AP of almost 0. But only in the right reading do the boxes lie on
objects, so each reading is evaluated on some images, by AP50: first boxes and image ids together without regard to
classes, then class ids with the best of those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.evaluation.average_precision import box_tables
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.error_types import class_ap50
from yolofleet.evaluation.ground_truth import Entries, GroundTruth
from yolofleet.evaluation.id_index import UNKNOWN, whole_number
from yolofleet.evaluation.precision_recall import ALL, AREA_RANGES, IOU_50, match
from yolofleet.evaluation.protocol import Protocol

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_IMAGES = 100
"""Images with objects that a reading is tried on."""
AS_IS = "as they are"


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxFormat:
    """A meaning of four numbers: whether they are shares of the image, and how they become x, y, width, height."""

    meaning: str
    normalized: bool
    convert: Callable[[Floats], Floats]


def _from_corners(boxes: Floats) -> Floats:
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)


def _from_centre(boxes: Floats) -> Floats:
    return np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]), axis=1)


BOX_FORMATS = {
    f"{name}{'n' if normalized else ''}": BoxFormat(
        meaning=f"{meaning}, {'as shares of the image' if normalized else 'in pixels'}",
        normalized=normalized,
        convert=convert,
    )
    for normalized in (False, True)
    for name, meaning, convert in (
        ("xywh", "x, y, width, height", lambda boxes: boxes),
        ("xyxy", "the corners x1, y1, x2, y2", _from_corners),
        ("cxcywh", "the centre, width, height", _from_centre),
    )
}


def check_box_format(name: str) -> str:
    """Return the name of a box format.

    Raises:
        UserError: There is no such format.
    """
    if name not in BOX_FORMATS:
        known = ", ".join(f"{name} ({entry.meaning})" for name, entry in BOX_FORMATS.items())
        raise UserError(f"--boxes {name}: there is no such format; use {known}")
    return name


def convert_boxes(boxes: Floats, name: str, sizes: Floats) -> Floats:
    """Return boxes as x, y, width, height in pixels.

    Args:
        boxes: (D, 4).
        name: Of their format.
        sizes: (D, 2) width and height of the images; NaN where they are not known.
    """
    entry = BOX_FORMATS[name]
    return entry.convert(boxes * np.tile(sizes, 2) if entry.normalized else boxes)


def image_sizes(truth: GroundTruth) -> Floats:
    """Return width and height of each image of a ground truth (I, 2); NaN where it does not say."""
    sizes = [[image.get("width"), image.get("height")] for image in truth.document["images"]]
    whole = [[value if isinstance(value, int | float) and value > 0 else np.nan for value in size] for size in sizes]
    return np.array(whole, np.float64).reshape(-1, 2)


def id_readings(values: list[Any], entries: Entries, positions: Integers) -> dict[str, Integers]:
    """Return what whole numbers may mean besides ids, as positions of entries; only readings that find them all.

    The words of a reading fit between "ids are" and "of the ground truth".

    Args:
        values: Ids of a result file.
        entries: Images or categories of the ground truth.
        positions: (D,) what they mean as they are.
    """
    readings = {AS_IS: positions}
    numbers = [whole_number(value) for value in values]
    count = len(entries.numbers)
    if not numbers or not count or any(number is None or abs(number) >= 2**53 for number in numbers):
        return readings
    column = np.array(numbers, np.int64)
    by_id = np.argsort(entries.numbers, kind="stable")
    for shift, words in ((1, "one less than the ids"), (-1, "one more than the ids")):
        at = np.searchsorted(entries.numbers[by_id], column + shift)
        row = by_id[np.minimum(at, count - 1)]
        readings[words] = np.where(entries.numbers[row] == column + shift, row, UNKNOWN)
    for first in (0, 1):
        inside = (column >= first) & (column < count + first)
        for order, words in ((by_id, "among the ids"), (np.arange(count), "in the list")):
            rows = np.where(inside, order[np.where(inside, column - first, 0)], UNKNOWN)
            readings[f"the positions, from {first}, {words}"] = rows
    readings["the numbers in the names"] = entries.index.find(values, ("name",)).positions
    return {words: rows for words, rows in readings.items() if words == AS_IS or (rows >= 0).all()}


class Trial:
    """AP50 of readings on some images of a ground truth.

    Args:
        truth: With objects or without; without any, nothing can be tried.
        scores: (D,) of the detections.
        sizes: (I, 2) of `image_sizes`.
    """

    def __init__(self, truth: GroundTruth, scores: Floats, sizes: Floats) -> None:
        annotations = truth.document["annotations"]
        with_objects = sorted({entry["image_id"] for entry in annotations})
        step = max(1, len(with_objects) // MOST_IMAGES)
        chosen = set(with_objects[::step][:MOST_IMAGES])
        self._truth, self._scores, self._sizes = truth, scores, sizes
        self._chosen = np.isin(truth.images.numbers, list(chosen))
        self._document: Mapping[str, Any] = {
            "images": [{"id": number} for number in chosen],
            "categories": truth.document["categories"],
            "annotations": [entry for entry in annotations if entry["image_id"] in chosen],
        }
        self.is_possible = bool(chosen) and len(scores) > 0

    def ap50(
        self, images: Integers, categories: Integers, boxes: Floats, box_format: str, *, class_agnostic: bool = False
    ) -> float:
        """Return AP50 of one reading; image and category positions that are negative are unknown."""
        rows = np.flatnonzero((images >= 0) & self._chosen[images] & (class_agnostic | (categories >= 0)))
        pixels = convert_boxes(boxes[rows], box_format, self._sizes[images[rows]])
        if np.isnan(pixels).any():
            return 0.0
        known = np.zeros(len(rows), np.int64) if class_agnostic else categories[rows]
        detections = Detections(
            image_ids=self._truth.images.numbers[images[rows]],
            category_ids=self._truth.categories.numbers[known],
            boxes=pixels,
            scores=self._scores[rows],
        )
        tables = box_tables(self._document, detections, Protocol(class_agnostic=class_agnostic))
        matching = match(tables.truth, tables.detected, AREA_RANGES[:1])
        matched, ignored = matching.matched[:, IOU_50, ALL], matching.ignored[:, IOU_50, ALL]
        classes, of_objects = (table.groups // len(tables.image_ids) for table in (tables.detected, tables.truth))
        num_objects = np.bincount(of_objects[~tables.truth.crowds], minlength=len(tables.category_ids))
        order = np.argsort(-tables.scores, kind="stable")
        values = class_ap50(order, classes, matched & ~ignored, ~ignored, num_objects)
        return float(np.nanmean(values)) if num_objects.any() else 0.0
