"""Precision and recall of a whole dataset: boxes in groups, COCO's matching, and accumulation class by class.

Matching: inside one image and class, each detection in descending score matches the best free object that it overlaps
enough. Objects that do not count (crowds, sizes outside the range) are matched only where no counting object is free, a
crowd by any number of detections; a detection that matches such an object counts neither way. This is sequential inside
a group of one image and class, but groups are independent: the first detections of all groups are matched in one
vectorised round, then all second ones, at most 100 rounds (as many as the protocol allows detections), each for every
IoU threshold and size range together. Only pairs with an IoU of at least 0.5 take part, so 5,000 images take about a
second.

Accumulation: every sum is taken in pycocotools' order, with the rounding term in its denominator, so the results equal
its arrays bit by bit. It is a few sorted passes over the detections of a class: 500,000 detections take about a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from yolofleet.evaluation.detections import BoxTable
from yolofleet.evaluation.protocol import COCO_PROTOCOL, Protocol

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Pairs = tuple[Integers, Integers, Floats]
"""Detection, object and IoU of each pair, (P,) each."""

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
AREA_RANGES: Floats = COCO_PROTOCOL.area_ranges  # all, small, medium, large
RECALL_LEVELS: Floats = np.linspace(0.0, 1.0, 101)
ALLOWED = COCO_PROTOCOL.allowed  # 1, 10, 100: most detections of a class in an image
ALL, SMALL, MEDIUM, LARGE = range(len(AREA_RANGES))
IOU_50, IOU_75 = 0, 5  # positions among the IoU thresholds
NOT_MEASURED = -1.0
PAIRS_AT_ONCE = 250_000  # bounds the memory of the overlaps: about 30 MB, which the caches of a CPU still help with


def outside_ranges(areas: Floats, ranges: Floats = AREA_RANGES) -> Booleans:
    """Return (N, A): whether an area is outside each range (A, 2); both ends of a range belong to it."""
    return (areas[:, None] < ranges[:, 0]) | (areas[:, None] > ranges[:, 1])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matching:
    """What D detections match; T IoU thresholds, A size ranges.

    Attributes:
        matched: (D, T, A) bool; whether the detection matches an object.
        ignored: (D, T, A) bool; whether it counts neither way, because its object does not count, or because it matches
            none and its own size is outside.
        objects: (D,) the object that it matches at IoU 0.50 in the first range; -1: none.
    """

    matched: Booleans
    ignored: Booleans
    objects: Integers


def match(
    objects: BoxTable, detections: BoxTable, ranges: Floats = AREA_RANGES, pairs: Pairs | None = None
) -> Matching:
    """Match the detections and objects of every group.

    Args:
        objects: Ground truth (G).
        detections: (D).
        ranges: (A, 2) lowest and highest area.
        pairs: `pairs_by_round` of both, where they are known already.
    """
    num_thresholds, num_ranges = len(IOU_THRESHOLDS), len(ranges)
    object_ignored = objects.crowds[:, None] | outside_ranges(objects.areas, ranges)  # (G, A)
    object_taken = np.zeros((len(objects.groups), num_thresholds, num_ranges), dtype=bool)
    matched = np.zeros((len(detections.groups), num_thresholds, num_ranges), dtype=bool)
    ignored = np.repeat(outside_ranges(detections.areas, ranges)[:, None, :], num_thresholds, axis=1)
    partners = np.full(len(detections.groups), -1)

    of_detection, of_object, overlaps = pairs or pairs_by_round(objects, detections)
    rounds = [*_starts(detections.ranks[of_detection]).tolist(), len(of_detection)]
    for start, end in pairwise(rounds):
        # A pair can match where its object is free (a crowd always is) and the overlap reaches the threshold.
        candidates = of_object[start:end]  # (p,)
        free = ~object_taken[candidates] | objects.crowds[candidates, None, None]  # (p, T, A)
        free &= (overlaps[start:end, None] >= IOU_THRESHOLDS)[:, :, None]
        # The last free pair is the best one, but a pair whose object counts beats every pair whose object does not:
        # number the pairs from 1, add the length of the round to those that count, and take the highest number.
        position = np.arange(1, end - start + 1, dtype=np.int32)[:, None]  # (p, 1)
        preference = np.where(object_ignored[candidates], position, position + (end - start))  # (p, A)
        firsts = _starts(of_detection[start:end])
        best = np.maximum.reduceat(np.where(free, preference[:, None, :], 0), firsts, axis=0)  # (d, T, A)
        is_match = best > 0
        chosen = candidates[(best - 1) % (end - start)]  # (d, T, A) objects; meaningless where there is no match
        # Note the matches, and take the matched objects out of the later rounds.
        rows = of_detection[start:end][firsts]  # (d,)
        matched[rows] = is_match
        ignored[rows] = np.where(is_match, object_ignored[chosen, np.arange(num_ranges)], ignored[rows])
        partners[rows] = np.where(is_match[:, IOU_50, ALL], chosen[:, IOU_50, ALL], -1)
        _, threshold, size_range = np.nonzero(is_match)
        object_taken[chosen[is_match], threshold, size_range] = True
    return Matching(matched=matched, ignored=ignored, objects=partners)


def pairs_by_round(objects: BoxTable, detections: BoxTable) -> Pairs:
    """Return the pairs that may match, by round; in it by detection, the worst pair first.

    Of equal overlaps the later object is the better one.
    """
    of_detection, of_object, overlaps = overlapping_pairs(objects, detections)
    order = np.lexsort((of_object, overlaps, of_detection, detections.ranks[of_detection]))
    return of_detection[order], of_object[order], overlaps[order]


def overlapping_pairs(objects: BoxTable, detections: BoxTable, least_iou: float = IOU_THRESHOLDS[0]) -> Pairs:
    """Return the pairs of each group that reach an IoU above 0."""
    first = np.searchsorted(objects.groups, detections.groups, side="left")
    counts = np.searchsorted(objects.groups, detections.groups, side="right") - first  # (D,) objects in its group
    ends = np.cumsum(counts)
    left, right = _sides_along_x(detections.boxes)
    object_left, object_right = _sides_along_x(objects.boxes)
    kept: list[Pairs] = []
    start = 0
    while start < len(counts):  # as many detections in one pass as have about PAIRS_AT_ONCE pairs
        before = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, side="right")))
        part = slice(start, stop)
        of_detection = np.repeat(np.arange(start, stop), counts[part])
        offsets = first[part] - (ends[part] - counts[part] - before)  # from the number of a pair to its object
        of_object = np.arange(len(of_detection)) + np.repeat(offsets, counts[part])
        # Most pairs lie apart from left to right already: those are left out before anything else is computed.
        close = (left[of_detection] < object_right[of_object]) & (object_left[of_object] < right[of_detection])
        of_detection, of_object = of_detection[close], of_object[close]
        overlaps = _intersection_over_union(
            detections.boxes[of_detection], objects.boxes[of_object], objects.crowds[of_object]
        )
        enough = overlaps >= least_iou
        kept.append((of_detection[enough], of_object[enough], overlaps[enough]))
        start = stop
    if not kept:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    detection_parts, object_parts, overlap_parts = zip(*kept, strict=True)
    return np.concatenate(detection_parts), np.concatenate(object_parts), np.concatenate(overlap_parts)


def _sides_along_x(boxes: Floats) -> tuple[Floats, Floats]:
    return np.ascontiguousarray(boxes[:, 0]), boxes[:, 0] + boxes[:, 2]


def _intersection_over_union(detected: Floats, truth: Floats, crowds: Booleans) -> Floats:
    """Return the IoU of boxes (P, 4) x, y, width, height row by row; for a crowd the share of the detection in it."""
    low = np.maximum(detected[:, :2], truth[:, :2])
    high = np.minimum(detected[:, :2] + detected[:, 2:], truth[:, :2] + truth[:, 2:])
    width, height = (high - low).T
    apart = (width <= 0) | (height <= 0)
    intersection = np.where(apart, 0.0, width * height)
    found_area = detected[:, 2] * detected[:, 3]
    union = np.where(crowds, found_area, found_area + truth[:, 2] * truth[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=~apart)


def _columns(flags: Booleans) -> Booleans:
    return np.ascontiguousarray(flags.transpose(2, 1, 0))


def _starts(values: Integers) -> Integers:
    """Return the start of each run of equal values."""
    return np.flatnonzero(np.diff(values, prepend=values[:1] - 1))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curves:
    """Precision and recall of all classes: T IoU thresholds, R recall levels, K classes, A size ranges; -1: no objects.

    Attributes:
        precision: (T, R, K, A) the best precision at this recall or a higher one, with most detections allowed.
        recall: (T, K, A, M) the final recall with each number of detections allowed: 1, 10 and 100.
        best_f1: (K,) the best F1 at IoU 0.50 that any threshold reaches.
        best_scores: (K,) that threshold; NaN where no object is found.
    """

    precision: Floats
    recall: Floats
    best_f1: Floats
    best_scores: Floats


def precision_recall(
    truth: BoxTable,
    detected: BoxTable,
    scores: Floats,
    *,
    num_images: int,
    num_classes: int,
    protocol: Protocol = COCO_PROTOCOL,
) -> Curves:
    """Match all detections and accumulate precision and recall, class by class."""
    ranges, counts_allowed = protocol.area_ranges, protocol.allowed
    matching = match(truth, detected, ranges)
    matched, ignored = matching.matched, matching.ignored  # (D, T, A)
    num_thresholds, num_ranges = matched.shape[1:]
    counted = ~(truth.crowds[:, None] | outside_ranges(truth.areas, ranges))  # (G, A)
    precision = np.full((num_thresholds, len(RECALL_LEVELS), num_classes, num_ranges), NOT_MEASURED)
    best_f1, best_scores = np.full(num_classes, NOT_MEASURED), np.full(num_classes, np.nan)
    recall = np.full((num_thresholds, num_classes, num_ranges, len(counts_allowed)), NOT_MEASURED)
    edges = np.arange(num_classes + 1) * num_images
    truth_edges, found_edges = np.searchsorted(truth.groups, edges), np.searchsorted(detected.groups, edges)
    for k in range(num_classes):
        num_objects = counted[truth_edges[k] : truth_edges[k + 1]].sum(axis=0)  # (A,)
        rows = slice(found_edges[k], found_edges[k + 1])
        # All detections of the class by descending score. Of equal scores the image with the smaller id comes first, as
        # in pycocotools.
        order = np.argsort(-scores[rows], kind="stable")
        class_scores, ranks = scores[rows][order], detected.ranks[rows][order]
        hits = _columns((matched[rows] & ~ignored[rows])[order])  # (A, T, d)
        misses = _columns((~matched[rows] & ~ignored[rows])[order])
        # Sizes without objects stay "not measured".
        for a in np.flatnonzero(num_objects):
            for m, allowed in enumerate(counts_allowed):
                recall[:, k, a, m] = hits[a][:, ranks < allowed].sum(axis=1) / num_objects[a]
            precision[:, :, k, a] = precision_at_recall(hits[a], misses[a], num_objects[a])
        if num_objects[ALL]:
            best_f1[k], best_scores[k] = operating_point(
                hits[ALL, IOU_50], misses[ALL, IOU_50], class_scores, num_objects[ALL]
            )
    return Curves(precision=precision, recall=recall, best_f1=best_f1, best_scores=best_scores)


def precision_at_recall(hits: Booleans, misses: Booleans, num_objects: int) -> Floats:
    """Return precision (N, R) at the recall levels of N evaluations of the same detections.

    Args:
        hits: (N, d) bool, by descending score.
        misses: (N, d) bool; a detection that is neither counts neither way.
        num_objects: Objects, at least one.
    """
    # Precision after each hit (between hits it falls), then the best at this recall or a higher one. A level has the
    # precision of the first hit that reaches it; where none does, that of the last column: 0.
    of_row, at = np.nonzero(hits)
    counts = hits.sum(axis=1)  # (N,)
    true = np.arange(1.0, len(at) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
    exact = np.zeros((len(hits), counts.max(initial=0) + 1))
    exact[of_row, true.astype(np.int64) - 1] = true / (np.cumsum(misses, axis=1)[of_row, at] + true + np.spacing(1))
    best = np.maximum.accumulate(exact[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(best[:, np.minimum(_hits_before_levels(int(num_objects)), exact.shape[1] - 1)])


@lru_cache(maxsize=4096)
def _hits_before_levels(num_objects: int) -> Integers:
    """Return the position (R,) among the hits of the one that reaches each recall level."""
    return np.searchsorted(np.arange(1.0, num_objects + 1) / num_objects, RECALL_LEVELS, side="left")


def operating_point(hits: Booleans, misses: Booleans, scores: Floats, num_objects: int) -> tuple[float, float]:
    """Return the best F1 that a threshold reaches, and the highest such threshold; NaN where nothing is hit.

    Hits and misses are those of `precision_at_recall`, with their scores (d,); equal scores count together.
    """
    if not hits.any():
        return 0.0, float("nan")
    f1 = 2 * np.cumsum(hits) / (np.cumsum(hits) + np.cumsum(misses) + num_objects)
    f1[:-1][scores[1:] == scores[:-1]] = 0.0  # a threshold never parts equal scores
    best = int(np.argmax(f1))
    return float(f1[best]), float(scores[best])
