"""Suspicious labels, found by looking at the boxes alone. Nothing is changed: people decide.

Three kinds: two boxes of one class that overlap almost wholly (one object labelled twice), boxes at borders, and boxes
of an extreme shape. An object that is cut by one border is labelled rightly; a box that touches several
borders, or is a sliver at one, may not be. (How many boxes touch how many borders is a histogram.)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.histograms import Columns, columns
from yolofleet.data.records import ImageRecord, ObjectClass

FINDING_KINDS = {
    "box_labelled_twice": "two boxes of one class overlap almost completely (score: their IoU)",
    "box_on_border": "a box touches several borders or is a thin strip at one (score: borders / 4, 1 for a strip)",
    "box_extreme_shape": "a box is 20 times longer than wide (score: 1 - 20 : ratio)",
    "label_missing": "the model is confident of an object that no label covers (score: its confidence)",
    "label_wrong_class": "the model is more confident of another class (score: the difference)",
    "label_misplaced": "the model is confident of another box (score: confidence x (1 - IoU))",
    "label_not_found": "the model finds nothing here, although it finds such objects (score: the share that it finds)",
}
"""What each kind of finding means, and what its score is: 0 to 1, the most suspicious first."""
LABELLED_TWICE_IOU = 0.9
SLIVER_SHARE = 0.01
EXTREME_RATIO = 20.0
MOST_NEIGHBOURS = 64
"""A box is compared with so many of its class that begin next to it: the time stays linear in any image."""
MOST_FINDINGS_KEPT = 200


@dataclass(frozen=True, order=True)
class Finding:
    """A label, or the want of one, that a person should look at."""

    score: float
    """How suspicious it is, 0 to 1; what it means depends on the kind."""
    split: int
    """Position of the dataset among those checked."""
    image: int
    """Position of the image among those that can be used."""
    labels: tuple[int, ...]
    """Positions of the boxes in its record."""
    text: str
    """What is suspicious, with the values seen."""
    detection: dict[str, Any] | None = field(default=None, compare=False)
    """What a model found instead: category_id, category_name, bbox, score."""


@dataclass
class Findings:
    """Findings counted by kind; the worst of each kind are kept."""

    counts: dict[str, int] = field(default_factory=dict)
    _kept: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, kind: str, finding: Finding) -> None:
        """Count a finding, and keep it if it is among the worst of its kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        kept = self._kept.setdefault(kind, [])
        (heapq.heappush if len(kept) < MOST_FINDINGS_KEPT else heapq.heappushpop)(kept, finding)

    def worst(self, kind: str) -> list[Finding]:
        """Return what is kept of a kind, the most suspicious first."""
        return sorted(self._kept.get(kind, []), key=lambda entry: (-entry.score, entry.split, entry.image))

    def as_document(
        self, file_name: Callable[[Finding], str], splits: Sequence[Sequence[ImageRecord]]
    ) -> dict[str, Any]:
        """Return plain JSON values, in the order of `FINDING_KINDS`."""
        return {
            kind: {
                "count": self.counts[kind],
                "meaning": meaning,
                "worst": [
                    {
                        "file": file_name(entry),
                        "score": round(entry.score, 4),
                        "text": entry.text,
                        "boxes": splits[entry.split][entry.image].boxes[list(entry.labels)].tolist(),
                        "detection": entry.detection,
                    }
                    for entry in self.worst(kind)
                ],
            }
            for kind, meaning in FINDING_KINDS.items()
            if kind in self.counts
        }


def find_suspicious_labels(
    records: Sequence[ImageRecord], classes: Sequence[ObjectClass], split: int, findings: Findings
) -> None:
    """Add what is suspicious about the boxes of a dataset."""
    for part in columns(records):
        for kind, check in (
            ("box_labelled_twice", _labelled_twice),
            ("box_on_border", _on_border),
            ("box_extreme_shape", _extreme_shapes),
        ):
            for score, rows, text in check(part):
                labels = tuple(part.labels[rows].tolist())
                image = part.first + int(part.owners[rows[0]])
                name = classes[int(part.classes[rows[0]])].name
                findings.add(kind, Finding(score, split, image, labels, f"{name}: {text}"))


_Suspicions = Iterator[tuple[float, list[int], str]]


def _labelled_twice(part: Columns) -> _Suspicions:
    # Boxes that overlap almost wholly begin close to each other, so sorting by x brings them together.
    order = np.lexsort((part.boxes[:, 0], part.classes, part.owners))
    low, size = part.boxes[order, :2], part.boxes[order, 2:]
    for distance in range(1, min(MOST_NEIGHBOURS, len(order) - 1) + 1):
        one, other = slice(None, -distance), slice(distance, None)
        close = (part.owners[order[one]] == part.owners[order[other]]) & (
            part.classes[order[one]] == part.classes[order[other]]
        )
        close &= low[other, 0] - low[one, 0] <= (1 - LABELLED_TWICE_IOU) * size[one, 0]
        if not close.any():
            return
        first = np.flatnonzero(close)
        ious = paired_iou(part.boxes[order[first]], part.boxes[order[first + distance]])
        for row, iou in zip(first, ious.tolist(), strict=True):
            if iou >= LABELLED_TWICE_IOU:
                yield iou, [int(order[row]), int(order[row + distance])], f"two boxes with IoU {iou:.3f}"


def _on_border(part: Columns) -> _Suspicions:
    touches = part.touched_borders()
    is_sliver = (touches[:, :2] | touches[:, 2:]) & (part.boxes[:, 2:] < SLIVER_SHARE * part.sizes[part.owners])
    for row in np.flatnonzero((touches.sum(axis=1) > 1) | is_sliver.any(axis=1)):
        sides = [
            name for name, touched in zip(("left", "top", "right", "bottom"), touches[row], strict=True) if touched
        ]
        score = 1.0 if is_sliver[row].any() else len(sides) / 4
        sliver = "a sliver " if is_sliver[row].any() else ""
        yield score, [int(row)], f"{sliver}at the {', '.join(sides)} border"


def _extreme_shapes(part: Columns) -> _Suspicions:
    width, height = part.boxes[:, 2], part.boxes[:, 3]
    ratios = np.maximum(width / height, height / width)
    for row in np.flatnonzero(ratios > EXTREME_RATIO):
        yield 1 - EXTREME_RATIO / ratios[row], [int(row)], f"{width[row]:.1f} x {height[row]:.1f} pixels"


def paired_iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of boxes x, y, width, height pair by pair; the shapes (..., 4) are broadcast."""
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    union = first[..., 2:].prod(axis=-1) + second[..., 2:].prod(axis=-1) - shared
    return np.asarray(shared / np.maximum(union, 1e-12))
