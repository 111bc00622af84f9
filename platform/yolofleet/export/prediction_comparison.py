"""Two ways to compute the same predictions are compared: the largest differences of boxes and of scores.

Detections are compared as sets: rounding may change the order of equal scores, and may move a score over the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from yolofleet.core.text import plural

BOX_TOLERANCE_PIXELS = 0.1
SCORE_TOLERANCE = 1e-3
EDGE = 1e-5
"""A score this near to the last one that is kept may fall on either side of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionComparison:
    """Differences between expected and computed predictions.

    Attributes:
        num_images: Images compared.
        num_boxes: Boxes compared: all decoded ones, or those that suppression left.
        box_pixels: Largest difference of a box's numbers, in pixels of the network's input.
        score: Largest difference of a score.
        unmatched: Detections of one side without a match of their class on the other.
    """

    num_images: int
    num_boxes: int
    box_pixels: float
    score: float
    unmatched: int = 0

    @property
    def equal(self) -> bool:
        """Whether they are the same up to rounding."""
        return self.box_pixels <= BOX_TOLERANCE_PIXELS and self.score <= SCORE_TOLERANCE and not self.unmatched

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {**asdict(self), "equal": self.equal}

    def __str__(self) -> str:
        unmatched = f", {plural(self.unmatched, 'detection')} on one side only" if self.unmatched else ""
        return (
            f"{plural(self.num_boxes, 'box differs', 'boxes differ')} by at most {self.box_pixels:.2g} px in "
            f"{plural(self.num_images, 'image')}, scores by {self.score:.2g}{unmatched}"
        )


def compare_decoded(expected: Tensor, found: Tensor) -> PredictionComparison:
    """Compare decoded predictions (B, N, 5 + C); another shape or NaN counts as an infinite difference."""
    if expected.shape != found.shape:
        return PredictionComparison(num_images=expected.shape[0], num_boxes=0, box_pixels=torch.inf, score=torch.inf)
    difference = (expected.float().cpu() - found.float().cpu()).abs()
    difference = difference.nan_to_num(nan=torch.inf)
    return PredictionComparison(
        num_images=expected.shape[0],
        num_boxes=expected.shape[0] * expected.shape[1],
        box_pixels=float(difference[..., :4].max()),
        score=float(difference[..., 4:].max()),
    )


def compare_detections(expected: Sequence[Tensor], found: Sequence[Tensor], *, full: int) -> PredictionComparison:
    """Compare detections (k, 6) of each image, whatever their order.

    Args:
        expected: x1, y1, x2, y2, score, class index.
        found: The same of the other side.
        full: The most detections of an image; where it has that many, the last ones are at the edge.
    """
    boxes, scores, unmatched = 0.0, 0.0, 0
    for want, got in zip(expected, found, strict=True):
        pairs = _pair(want, got)
        for row, other in pairs:
            boxes = max(boxes, float((want[row, :4] - got[other, :4]).abs().max()))
            scores = max(scores, float((want[row, 4] - got[other, 4]).abs()))
        left = [rows[list(set(range(len(rows))) - set(used))] for rows, used in _sides(want, got, pairs)]
        edge = max((float(rows[:, 4].min()) for rows in (want, got) if len(rows) == full), default=-1.0)
        unmatched += sum(int((rows[:, 4] > edge + EDGE).sum()) for rows in left)
    return PredictionComparison(
        num_images=len(expected),
        num_boxes=sum(len(rows) for rows in expected),
        box_pixels=boxes,
        score=scores,
        unmatched=unmatched,
    )


def merge_comparisons(parts: Sequence[PredictionComparison]) -> PredictionComparison:
    """Return several comparisons as one."""
    return PredictionComparison(
        num_images=sum(part.num_images for part in parts),
        num_boxes=sum(part.num_boxes for part in parts),
        box_pixels=max(part.box_pixels for part in parts),
        score=max(part.score for part in parts),
        unmatched=sum(part.unmatched for part in parts),
    )


def _sides(want: Tensor, got: Tensor, pairs: list[tuple[int, int]]) -> list[tuple[Tensor, list[int]]]:
    return [(want, [row for row, _ in pairs]), (got, [other for _, other in pairs])]


def _pair(want: Tensor, got: Tensor) -> list[tuple[int, int]]:
    """Pair each expected detection with the nearest free one of its class, if one is near enough to be the same."""
    if not len(want) or not len(got):
        return []
    distance = (want[:, None, :4] - got[None, :, :4]).abs().amax(dim=2)
    far = (want[:, None, 5] != got[None, :, 5]) | (distance > BOX_TOLERANCE_PIXELS)
    far |= (want[:, None, 4] - got[None, :, 4]).abs() > SCORE_TOLERANCE
    distance = distance.masked_fill(far, torch.inf)
    pairs, taken = [], torch.zeros(len(got), dtype=torch.bool)
    for row in range(len(want)):
        nearest = distance[row].masked_fill(taken, torch.inf)
        other = int(nearest.argmin())
        if nearest[other] < torch.inf:
            taken[other] = True
            pairs.append((row, other))
    return pairs
