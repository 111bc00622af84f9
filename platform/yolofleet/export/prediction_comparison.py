"""Two ways to compute the same predictions are compared: the largest differences of boxes and of scores.

Detections are compared as sets: rounding may change the order of equal scores, and may move a score over the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.nms import non_maximum_suppression
from yolofleet.export.exporter import FORMATS
from yolofleet.export.settings import ExportError, InputShape, Thresholds
from yolofleet.models import deploy

SEED = 0
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
        unmatched = f", {self.unmatched} detections on one side only" if self.unmatched else ""
        return (
            f"{self.num_boxes:,} boxes of {self.num_images} images differ by at most {self.box_pixels:.2g} px, "
            f"scores by {self.score:.2g}{unmatched}"
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


def random_batches(shape: InputShape, stride: int) -> list[Tensor]:
    """Return batches of random images (B, 3, H, W) in 0..1; for any input also one of another batch and shape."""
    generator = torch.Generator().manual_seed(SEED)
    sizes = [(shape.batch, shape.image_size, shape.image_size)]
    if shape.dynamic:
        sizes += [(shape.batch + 2, shape.image_size + stride, max(stride, shape.image_size - stride))]
    return [torch.rand(batch, 3, height, width, generator=generator) for batch, height, width in sizes]


@torch.inference_mode()
def verify(
    path: Path, format_name: str, detector: Detector, thresholds: Thresholds | None, batches: list[Tensor]
) -> PredictionComparison:
    """Run an exported file and compare its predictions with torch's.

    Args:
        path: The file (of a model repository, the ONNX file in it).
        format_name: The format that it was written in.
        detector: What it was exported from.
        thresholds: Thresholds of the suppression inside it, if any.
        batches: Images (B, 3, H, W) in 0..1.

    Raises:
        ExportError: The file cannot be run.
    """
    load = FORMATS.get(format_name).load
    if load is None:
        raise ExportError(f"{path}: format {format_name} cannot be run here; leave out --verify")
    model, network = deploy(detector.model).cpu().eval(), load(path)
    if thresholds is None:
        return merge_comparisons([compare_decoded(model(batch), network(batch)) for batch in batches])
    return merge_comparisons(
        [_compare_suppressed(model(batch), network.detections(batch), thresholds) for batch in batches]
    )


def _compare_suppressed(decoded: Tensor, detections: list[Tensor], thresholds: Thresholds) -> PredictionComparison:
    expected = non_maximum_suppression(
        decoded,
        confidence=thresholds.confidence,
        iou=thresholds.iou,
        max_detections=thresholds.max_detections,
        multi_label=thresholds.multi_label,
    )
    return compare_detections(expected, detections, full=thresholds.max_detections)
