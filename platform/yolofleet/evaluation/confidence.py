"""What a confidence is worth: precision, recall and F1 over the threshold, and how well it tells the share of hits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolofleet.evaluation.average_precision import BoxTables
from yolofleet.evaluation.error_types import IGNORED, TRUE, Outcomes, by_class
from yolofleet.evaluation.precision_recall import Booleans, Floats, Integers, operating_point

NUM_THRESHOLDS, NUM_BINS = 101, 10


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ConfidenceCurves:
    """Precision, recall and F1 at IoU 0.50 over N thresholds; row 0 is of all classes together, then each class.

    Attributes:
        thresholds: (N,) ascending; detections of this score and above count.
        precision: (1 + K, N) NaN where nothing is detected.
        recall: (1 + K, N) NaN where there are no objects.
        f1: (1 + K, N) NaN where there are neither.
        best: (1 + K,) the threshold of the best F1; NaN where no object is found.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    best: Floats


def confidence_curves(tables: BoxTables, outcomes: Outcomes) -> ConfidenceCurves:
    """Count true and false detections over the threshold. Scores in another scale than 0 to 1 give the range of it."""
    scores = tables.scores
    lowest, highest = min(0.0, scores.min(initial=0.0)), max(1.0, scores.max(initial=1.0))
    thresholds = np.linspace(lowest, highest, NUM_THRESHOLDS)
    num_classes = len(tables.category_ids)
    true = _count_above(scores, outcomes.classes, outcomes.kinds == TRUE, thresholds, num_classes)
    false = _count_above(scores, outcomes.classes, outcomes.is_false, thresholds, num_classes)
    own = np.bincount(outcomes.object_classes[outcomes.counted], minlength=num_classes)
    objects = np.concatenate(([own.sum()], own))[:, None]
    best = [_best_threshold(outcomes.order, scores, outcomes, int(objects[0, 0]))]
    rows = by_class(outcomes.order, outcomes.classes, num_classes)
    edges = np.searchsorted(outcomes.classes[rows], np.arange(num_classes + 1))
    best += [_best_threshold(rows[edges[k] : edges[k + 1]], scores, outcomes, int(own[k])) for k in range(num_classes)]
    return ConfidenceCurves(
        thresholds=thresholds,
        precision=_ratio(true, true + false),
        recall=_ratio(true, np.broadcast_to(objects, true.shape)),
        f1=_ratio(2 * true, true + false + objects),
        best=np.array(best),
    )


def _count_above(scores: Floats, classes: Integers, chosen: Booleans, thresholds: Floats, num_classes: int) -> Integers:
    """Return (1 + K, N): the chosen detections at or above each threshold, of all classes and of each."""
    reached = np.searchsorted(thresholds, scores[chosen], side="right")  # thresholds that it reaches
    width = len(thresholds) + 1
    counts = np.bincount(classes[chosen] * width + reached, minlength=num_classes * width).reshape(num_classes, width)
    above = np.cumsum(counts[:, :0:-1], axis=1)[:, ::-1]
    return np.concatenate((above.sum(axis=0, keepdims=True), above))


def _best_threshold(rows: Integers, scores: Floats, outcomes: Outcomes, num_objects: int) -> float:
    if not num_objects:
        return float("nan")
    return operating_point(outcomes.kinds[rows] == TRUE, outcomes.is_false[rows], scores[rows], num_objects)[1]


def _ratio(part: Integers, whole: Integers) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """Detections by their confidence, in bins of equal width: (low, high], the first with 0.

    Attributes:
        edges: (B + 1,) of the bins.
        counts: (B,) detections.
        confidence: (B,) their mean confidence; NaN where there are none.
        precision: (B,) the share of them that is true at IoU 0.50; NaN where there are none.
        error: The expected calibration error: the mean distance of the two, weighted by the counts.
    """

    edges: Floats
    counts: Integers
    confidence: Floats
    precision: Floats
    error: float


def calibration(tables: BoxTables, outcomes: Outcomes, threshold: float = 0.0) -> Calibration | None:
    """Compare the confidence of the detections from a threshold on with the share that is true.

    Returns:
        None where no detection counts, or where scores are not from 0 to 1.
    """
    counted = (outcomes.kinds != IGNORED) & (tables.scores >= threshold)
    scores, true = tables.scores[counted], outcomes.kinds[counted] == TRUE
    if not len(scores) or tables.scores.min() < 0 or tables.scores.max() > 1:
        return None
    edges = np.linspace(0, 1, NUM_BINS + 1)
    bins = np.maximum(np.searchsorted(edges, scores, side="left") - 1, 0)
    counts = np.bincount(bins, minlength=NUM_BINS)
    filled = np.where(counts > 0, counts, np.nan)
    confidence = np.bincount(bins, scores, NUM_BINS) / filled
    precision = np.bincount(bins, true, NUM_BINS) / filled
    error = float(np.nansum(np.abs(precision - confidence) * counts) / len(scores))
    return Calibration(edges=edges, counts=counts, confidence=confidence, precision=precision, error=error)
