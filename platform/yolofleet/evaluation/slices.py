"""AP of a part of the objects: of one size, of one shape, or in images with so many objects.

Size and shape are sliced as COCO slices sizes: objects outside the slice, and detections outside it that match nothing,
count neither way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from yolofleet.evaluation.average_precision import BoxTables
from yolofleet.evaluation.detections import BoxTable
from yolofleet.evaluation.error_types import Outcomes, by_class
from yolofleet.evaluation.precision_recall import (
    ALL,
    IOU_50,
    Booleans,
    Floats,
    Matching,
    Pairs,
    match,
    outside_ranges,
    precision_at_recall,
)
from yolofleet.evaluation.protocol import LONGEST_SIDE, Protocol

SHAPES = {
    "taller than 3:1": (0.0, 1 / 3),
    "tall, 3:1 to 3:2": (1 / 3, 2 / 3),
    "about square": (2 / 3, 3 / 2),
    "wide, 3:2 to 3:1": (3 / 2, 3.0),
    "wider than 3:1": (3.0, np.inf),
}
"""Ranges of width over height."""
OBJECT_COUNTS = ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, None))
"""Ranges of the number of objects in an image; a crowd region is no object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A part of a dataset.

    Attributes:
        name: What its objects have in common.
        num_images: Images with such objects, or that are such.
        num_objects: Its objects.
        num_false: Detections from the threshold on that match no object.
        ap: Mean over classes and IoU thresholds; None where there are no objects.
        ap50: At IoU 0.50.
        recall: Share of its objects found from the threshold on.
        precision: Share of its detections from the threshold on that is true; None where there are none.
    """

    name: str
    num_images: int
    num_objects: int
    num_false: int
    ap: float | None
    ap50: float | None
    recall: float | None
    precision: float | None


class Slicer:
    """Cuts an evaluation into slices.

    Args:
        tables: The boxes.
        outcomes: What became of them.
        pairs: Which of them may match, see `pairs_by_round`.
        threshold: Lowest score that counts in recall and precision.
    """

    def __init__(self, tables: BoxTables, outcomes: Outcomes, pairs: Pairs, threshold: float) -> None:
        self._tables, self._outcomes, self._pairs = tables, outcomes, pairs
        self._may_match = np.zeros(len(tables.scores), bool)
        self._may_match[pairs[0]] = True
        self._order = by_class(outcomes.order, outcomes.classes, len(tables.category_ids))
        self._classes = outcomes.classes[self._order]
        self._is_above = tables.scores[self._order] >= threshold

    def by_size(self, matching: Matching, protocol: Protocol) -> list[Slice]:
        """Return a slice for each size of the protocol, from the matching with its ranges."""
        tables = (self._tables.truth, self._tables.detected)
        names = [f"{size.name}, {_sides(size.low, size.high)}" for size in protocol.sizes]
        return self._of_ranges(names, matching, tables, protocol.area_ranges, first=ALL + 1)

    def by_shape(self) -> list[Slice]:
        """Return a slice for each shape of box."""
        ranges = np.array(list(SHAPES.values()))
        truth, detected = _with_ratios(self._tables.truth), _with_ratios(self._tables.detected)
        return self._of_ranges([*SHAPES], match(truth, detected, ranges, self._pairs), (truth, detected), ranges)

    def by_object_count(self, matching: Matching) -> list[Slice]:
        """Return a slice for each range of the number of objects in an image."""
        outcomes = self._outcomes
        counts = np.bincount(outcomes.object_images[outcomes.counted], minlength=len(self._tables.image_ids))
        slices = []
        for low, high in OBJECT_COUNTS:
            inside = (counts >= low) & (counts <= (counts.max(initial=0) if high is None else high))
            name = f"{low} or more" if high is None else f"{low}" if low == high else f"{low} to {high}"
            objects = outcomes.counted & inside[outcomes.object_images]
            entry = self._slice(name, matching, ALL, objects, inside[outcomes.images])
            slices.append(replace(entry, num_images=int(inside.sum())))
        return slices

    def _of_ranges(
        self,
        names: Sequence[str],
        matching: Matching,
        tables: tuple[BoxTable, BoxTable],
        ranges: Floats,
        first: int = 0,
    ) -> list[Slice]:
        """Return a slice for each range of the areas in the tables of objects and detections, from the first one on."""
        inside, found_inside = (~outside_ranges(table.areas, ranges) for table in tables)  # (G, A), (D, A)
        return [
            self._slice(
                name,
                matching,
                column,
                self._outcomes.counted & inside[:, column],
                found_inside[:, column] | self._may_match,
            )
            for column, name in enumerate(names, start=first)
        ]

    def _slice(self, name: str, matching: Matching, column: int, objects: Booleans, detections: Booleans) -> Slice:
        """Compute a slice from a range of a matching, its objects (G,), and the detections (D,) that may count."""
        num_classes = len(self._tables.category_ids)
        kept = np.flatnonzero(detections[self._order])
        rows = self._order[kept]
        matched, ignored = (flags[rows, :, column].T for flags in (matching.matched, matching.ignored))  # (T, d)
        hits, misses = matched & ~ignored, ~(matched | ignored)
        classes, is_above = self._classes[kept], self._is_above[kept]
        num_objects = np.bincount(self._outcomes.object_classes[objects], minlength=num_classes)
        edges = np.searchsorted(classes, np.arange(num_classes + 1))
        values = [
            precision_at_recall(hits[:, edges[k] : edges[k + 1]], misses[:, edges[k] : edges[k + 1]], num_objects[k])
            for k in np.flatnonzero(num_objects)
        ]
        by_threshold = np.mean(values, axis=(0, 2)) if values else None  # (T,)
        num_true, num_false = (int(flags[IOU_50, is_above].sum()) for flags in (hits, misses))
        total = int(num_objects.sum())
        return Slice(
            name=name,
            num_images=len(np.unique(self._outcomes.object_images[objects])),
            num_objects=total,
            num_false=num_false,
            ap=None if by_threshold is None else float(by_threshold.mean()),
            ap50=None if by_threshold is None else float(by_threshold[IOU_50]),
            recall=num_true / total if total else None,
            precision=num_true / (num_true + num_false) if num_true + num_false else None,
        )


def _with_ratios(table: BoxTable) -> BoxTable:
    """Return a table with width over height in the column of the areas."""
    width, height = table.boxes[:, 2], table.boxes[:, 3]
    return replace(table, areas=np.divide(width, height, out=np.full(len(width), np.inf), where=height > 0))


def _sides(low: float, high: float) -> str:
    """Return a range of sides of squares in words."""
    if low <= 0:
        return f"below {high:g}² px"
    return f"from {low:g}² px" if high >= LONGEST_SIDE else f"{low:g}² to {high:g}² px"
