"""Precision and recall of a whole dataset: grouping, matching, and accumulating class by class.

Every sum is taken in pycocotools' order, the rounding term in its denominator included, so that what comes out is equal
to its arrays bit by bit. The cost is a few sorted passes over the detections of a class: 500,000 detections take about
a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.matching import AREA_RANGES, Booleans, Boxes, Floats, Integers, match, outside_ranges

RECALL_LEVELS: Floats = np.linspace(0.0, 1.0, 101)
ALLOWED = (1, 10, 100)  # detections an image may give a class
ALL, SMALL, MEDIUM, LARGE = range(len(AREA_RANGES))
IOU_50, IOU_75 = 0, 5  # positions among the IoU thresholds
NOT_MEASURED = -1.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curves:
    """What is left of all matches: T IoU thresholds, R recall levels, K classes, A size ranges; -1: not measured.

    Attributes:
        precision: (T, R, K, A) the best precision at this recall or a higher one, with 100 detections allowed.
        scores: (K, R) the score at which IoU 0.50 reaches the recall level; 0 where it never does.
        recall: (T, K, A, 3) the final recall with 1, 10 and 100 detections allowed.
    """

    precision: Floats
    scores: Floats
    recall: Floats


def precision_recall(truth: Boxes, found: Boxes, scores: Floats, *, num_images: int, num_classes: int) -> Curves:
    """Matches everything and accumulates precision and recall, class by class."""
    matched, ignored = match(truth, found)  # (D, T, A)
    num_thresholds, num_ranges = matched.shape[1:]
    counted = ~(truth.crowds[:, None] | outside_ranges(truth.areas))  # (G, A)
    precision = np.full((num_thresholds, len(RECALL_LEVELS), num_classes, num_ranges), NOT_MEASURED)
    score_at = np.full((num_classes, len(RECALL_LEVELS)), NOT_MEASURED)
    recall = np.full((num_thresholds, num_classes, num_ranges, len(ALLOWED)), NOT_MEASURED)
    edges = np.arange(num_classes + 1) * num_images
    truth_edges, found_edges = np.searchsorted(truth.groups, edges), np.searchsorted(found.groups, edges)
    for k in range(num_classes):
        num_objects = counted[truth_edges[k] : truth_edges[k + 1]].sum(axis=0)  # (A,)
        rows = slice(found_edges[k], found_edges[k + 1])
        # Of equal scores the image with the smaller id comes first, as in pycocotools.
        order = np.argsort(-scores[rows], kind="stable")
        class_scores, ranks = scores[rows][order], found.ranks[rows][order]
        hits = (matched[rows] & ~ignored[rows])[order]  # (d, T, A)
        misses = (~matched[rows] & ~ignored[rows])[order]
        for a in np.flatnonzero(num_objects):
            for m, allowed in enumerate(ALLOWED):
                recall[:, k, a, m] = hits[ranks < allowed, :, a].sum(axis=0) / num_objects[a]
            for t in range(num_thresholds):
                levels, reached = _precision_at_recall(hits[:, t, a], misses[:, t, a], num_objects[a])
                precision[t, :, k, a] = levels
                if t == IOU_50 and a == ALL:
                    score_at[k] = 0.0
                    score_at[k, : len(reached)] = class_scores[reached]
    return Curves(precision=precision, scores=score_at, recall=recall)


def _precision_at_recall(hits: Booleans, misses: Booleans, num_objects: int) -> tuple[Floats, Integers]:
    """Precision (R,) at the recall levels, and at which detection each level is reached (fewer where some never are).

    Args:
        hits: (d,) bool, by descending score.
        misses: (d,) bool; a detection that is neither counts neither way.
        num_objects: objects there are to find.
    """
    true, false = np.cumsum(hits, dtype=np.float64), np.cumsum(misses, dtype=np.float64)
    exact = true / (false + true + np.spacing(1))
    best = np.maximum.accumulate(exact[::-1])[::-1]  # the best at this recall or a higher one
    reached = np.searchsorted(true / num_objects, RECALL_LEVELS, side="left")
    reached = reached[reached < len(hits)]
    levels = np.zeros(len(RECALL_LEVELS))
    levels[: len(reached)] = best[reached]
    return levels, reached


def ground_truth_boxes(annotations: Sequence[Mapping[str, Any]], image_ids: Integers, category_ids: Integers) -> Boxes:
    """Annotations of known images and classes, grouped, each group in the order of the file."""
    of_image = np.array([entry["image_id"] for entry in annotations], np.int64)
    of_category = np.array([entry["category_id"] for entry in annotations], np.int64)
    boxes = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
    product = boxes[:, 2] * boxes[:, 3]
    given = [entry.get("area") for entry in annotations]
    areas = np.array([side if area is None else area for area, side in zip(given, product, strict=True)], np.float64)
    crowds = np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], bool)
    known = np.isin(of_image, image_ids) & np.isin(of_category, category_ids)
    groups = _groups(of_image, of_category, image_ids, category_ids)
    order = np.flatnonzero(known)[np.argsort(groups[known], kind="stable")]
    return Boxes(
        groups=groups[order],
        boxes=boxes[order],
        areas=areas[order],
        crowds=crowds[order],
        ranks=_ranks(groups[order]),
    )


def detection_boxes(detections: Detections, image_ids: Integers, category_ids: Integers) -> tuple[Boxes, Floats]:
    """Detections of known classes, grouped, each group by descending score and cut at 100; and their scores."""
    groups = _groups(detections.image_ids, detections.category_ids, image_ids, category_ids)
    known = np.flatnonzero(np.isin(detections.category_ids, category_ids))
    order = known[np.lexsort((-detections.scores[known], groups[known]))]
    ranks = _ranks(groups[order])
    order, ranks = order[ranks < ALLOWED[-1]], ranks[ranks < ALLOWED[-1]]
    boxes = detections.boxes[order]
    found = Boxes(
        groups=groups[order],
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowds=np.zeros(len(order), bool),
        ranks=ranks,
    )
    return found, detections.scores[order]


def _groups(of_image: Integers, of_category: Integers, image_ids: Integers, category_ids: Integers) -> Integers:
    """One number for each class and image, classes first; images in the order of their ids."""
    return np.searchsorted(category_ids, of_category) * len(image_ids) + np.searchsorted(image_ids, of_image)


def _ranks(groups: Integers) -> Integers:
    """Ascending group numbers (N,) -> the position of each inside its group."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups, side="left")
