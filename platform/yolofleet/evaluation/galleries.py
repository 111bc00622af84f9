"""Images that show what a detector does well and badly, with true, false and missed boxes distinguished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.evaluation.average_precision import BoxTables
from yolofleet.evaluation.error_types import ERROR_KINDS, TRUE, Outcomes
from yolofleet.evaluation.precision_recall import Booleans, Integers

MOST_FALSE_DRAWN = 20
"""False boxes of an image; those of a badly trained model would hide it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryImage:
    """An image of a gallery: its id, and why it is there."""

    image_id: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Images of one kind.

    Attributes:
        name: Of the kind, as a heading.
        images: The most telling one first; none twice.
    """

    name: str
    images: tuple[GalleryImage, ...]


class ImageOutcomes:
    """The true, false and missed boxes of each image, from a threshold on.

    Args:
        tables: The boxes.
        outcomes: What became of them.
        threshold: Lowest score that counts.
    """

    def __init__(self, tables: BoxTables, outcomes: Outcomes, threshold: float) -> None:
        self._tables, self._outcomes = tables, outcomes
        above = tables.scores >= threshold
        self.is_true, self.is_false = above & (outcomes.kinds == TRUE), above & outcomes.is_false
        self.is_missed = outcomes.counted & ~outcomes.found(above)
        self.num_true, self.num_false = (
            self._count(outcomes.images, self.is_true),
            self._count(outcomes.images, self.is_false),
        )
        self.num_missed = self._count(outcomes.object_images, self.is_missed)
        self._names = [tables.names[category_id] for category_id in tables.category_ids.tolist()]

    def _count(self, images: Integers, chosen: Booleans) -> Integers:
        return np.bincount(images[chosen], minlength=len(self._tables.image_ids))

    def galleries(self, count: int = 4) -> tuple[Gallery, ...]:
        """Return the galleries that have an image, each with at most so many images."""
        mistakes = self.num_false + self.num_missed
        f1 = 2 * self.num_true / np.maximum(2 * self.num_true + mistakes, 1)
        worst = np.lexsort((f1, -mistakes))[:count]
        best = np.lexsort((-self.num_true, mistakes, -f1))[:count]
        false = np.flatnonzero(self.is_false)
        false = false[np.argsort(-self._tables.scores[false], kind="stable")]
        missed = np.flatnonzero(self.is_missed)
        missed = missed[np.argsort(-self._tables.truth.areas[missed], kind="stable")]
        galleries = (
            ("Most mistakes", [(index, self._counts(index)) for index in worst.tolist() if mistakes[index]]),
            ("Most confident and wrong", self._first(self._outcomes.images, false, self._false_reason, count)),
            ("Largest objects missed", self._first(self._outcomes.object_images, missed, self._missed_reason, count)),
            ("Best", [(index, self._counts(index)) for index in best.tolist() if self.num_true[index]]),
        )
        return tuple(
            Gallery(
                name=name,
                images=tuple(GalleryImage(image_id=int(self._tables.image_ids[i]), reason=why) for i, why in entries),
            )
            for name, entries in galleries
            if entries
        )

    def _first(self, images: Integers, rows: Integers, reason: Any, count: int) -> list[tuple[int, str]]:
        """Return the first images among those of some rows, none twice."""
        _, first = np.unique(images[rows], return_index=True)
        return [(int(images[row]), reason(row)) for row in rows[np.sort(first)[:count]]]

    def _counts(self, index: int) -> str:
        return f"{self.num_true[index]} true, {self.num_false[index]} false, {self.num_missed[index]} missed"

    def _false_reason(self, row: int) -> str:
        name, kind = self._names[self._outcomes.classes[row]], ERROR_KINDS[self._outcomes.kinds[row]]
        return f"{name} {self._tables.scores[row]:.2f}: {FALSE_REASONS[kind]}"

    def _missed_reason(self, row: int) -> str:
        width, height = self._tables.truth.boxes[row, 2:]
        return f"{self._names[self._outcomes.object_classes[row]]} of {width:.0f}x{height:.0f} px"

    def boxes_of(self, image_id: int) -> list[dict[str, Any]]:
        """Return boxes of one image as records to draw: category_id, bbox, score of a detection, outcome."""
        index = int(np.searchsorted(self._tables.image_ids, image_id))
        outcomes, detected = self._outcomes, self._tables.detected
        records = list(
            self._records(
                "missed",
                self._tables.truth.boxes,
                outcomes.object_classes,
                np.flatnonzero(self.is_missed & (outcomes.object_images == index)),
            )
        )
        for outcome, chosen in (("false", self.is_false), ("true", self.is_true)):
            rows = np.flatnonzero(chosen & (outcomes.images == index))
            if outcome == "false":
                rows = rows[np.argsort(-self._tables.scores[rows], kind="stable")][:MOST_FALSE_DRAWN]
            found = self._records(outcome, detected.boxes, outcomes.classes, rows)
            scores = self._tables.scores[rows].tolist()
            records += [{**record, "score": score} for record, score in zip(found, scores, strict=True)]
        return records

    def _records(self, outcome: str, boxes: Any, classes: Integers, rows: Integers) -> Iterator[dict[str, Any]]:
        for row in rows.tolist():
            category_id = int(self._tables.category_ids[classes[row]])
            yield {"category_id": category_id, "bbox": boxes[row].tolist(), "outcome": outcome}


FALSE_REASONS = {
    "classification": "an object of another class",
    "localisation": "too far off its object",
    "both": "too far off an object of another class",
    "duplicate": "the object is found already",
    "background": "no object there",
}
