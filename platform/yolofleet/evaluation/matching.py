"""COCO's matching of detections to ground truth, for a whole dataset at once.

Inside one image and class, detections in descending score each take the best free object they overlap enough; objects
that do not count (crowds, sizes outside the range looked at) are taken only when no counting one is to be had, a crowd
by any number of detections; a detection that took such an object counts neither way. This is sequential inside a group
of one image and class, but groups are independent: all groups' first detections are settled in one vectorised round,
then all second ones, and so on, at most 100 rounds, each for every IoU threshold and range of sizes together. Only
pairs with an IoU of at least 0.5 take part, so 5,000 images are a matter of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
AREA_RANGES: Floats = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # all, small, medium, large
PAIRS_AT_ONCE = 2_000_000  # bounds the memory of the overlaps: about 300 MB


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Boxes:
    """Boxes sorted by group: ground truth (G) or detections (D).

    Attributes:
        groups: (N,) ascending; one number for each image and class.
        boxes: (N, 4) x, y, width, height in pixels.
        areas: (N,) what the size ranges look at.
        crowds: (N,) bool; all False for detections.
        ranks: (N,) position inside the group; detections are in descending score.
    """

    groups: Integers
    boxes: Floats
    areas: Floats
    crowds: Booleans
    ranks: Integers


def outside_ranges(areas: Floats) -> Booleans:
    """Areas (N,) -> (N, A): which sizes do not count in which range; both ends of a range belong to it."""
    return (areas[:, None] < AREA_RANGES[:, 0]) | (areas[:, None] > AREA_RANGES[:, 1])


def match(objects: Boxes, detections: Boxes) -> tuple[Booleans, Booleans]:
    """Matches every group.

    Args:
        objects: ground truth (G).
        detections: (D).

    Returns:
        (D, T, A): whether the detection took an object at each IoU threshold and size range; and (D, T, A): whether
        it counts neither way, because its object does not count, or because it took none and its own size is outside.
    """
    num_thresholds, num_ranges = len(IOU_THRESHOLDS), len(AREA_RANGES)
    object_ignored = objects.crowds[:, None] | outside_ranges(objects.areas)  # (G, A)
    object_taken = np.zeros((len(objects.groups), num_thresholds, num_ranges), dtype=bool)
    matched = np.zeros((len(detections.groups), num_thresholds, num_ranges), dtype=bool)
    ignored = np.repeat(outside_ranges(detections.areas)[:, None, :], num_thresholds, axis=1)

    of_detection, of_object, overlaps = _overlapping_pairs(objects, detections)  # (P,) each
    # Round by round; in it detection by detection, worst pair first. Of equal overlaps the later object is the better.
    order = np.lexsort((of_object, overlaps, of_detection, detections.ranks[of_detection]))
    of_detection, of_object, overlaps = of_detection[order], of_object[order], overlaps[order]
    rounds = [*_starts(detections.ranks[of_detection]).tolist(), len(order)]
    for start, end in pairwise(rounds):
        candidates = of_object[start:end]  # (p,)
        free = ~object_taken[candidates] | objects.crowds[candidates, None, None]  # (p, T, A)
        free &= (overlaps[start:end, None] >= IOU_THRESHOLDS)[:, :, None]
        # The last free pair is the best one, but any pair whose object counts beats every pair whose object does not.
        place = np.arange(1, end - start + 1)[:, None]  # (p, 1)
        preference = np.where(object_ignored[candidates], place, place + (end - start))  # (p, A)
        firsts = _starts(of_detection[start:end])
        best = np.maximum.reduceat(np.where(free, preference[:, None, :], 0), firsts, axis=0)  # (d, T, A)
        found = best > 0
        chosen = candidates[(best - 1) % (end - start)]  # (d, T, A) objects; of no meaning where nothing was found
        rows = of_detection[start:end][firsts]  # (d,)
        matched[rows] = found
        ignored[rows] = np.where(found, object_ignored[chosen, np.arange(num_ranges)], ignored[rows])
        _, threshold, size_range = np.nonzero(found)
        object_taken[chosen[found], threshold, size_range] = True
    return matched, ignored


def _overlapping_pairs(objects: Boxes, detections: Boxes) -> tuple[Integers, Integers, Floats]:
    """Pairs of one group that overlap by the lowest threshold: detection index, object index, IoU (P,) each."""
    first = np.searchsorted(objects.groups, detections.groups, side="left")
    counts = np.searchsorted(objects.groups, detections.groups, side="right") - first  # (D,) objects in its group
    ends = np.cumsum(counts)
    kept: list[tuple[Integers, Integers, Floats]] = []
    start = 0
    while start < len(counts):  # as many detections at a time as make about PAIRS_AT_ONCE pairs
        before = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, side="right")))
        of_detection = np.repeat(np.arange(start, stop), counts[start:stop])
        place = np.arange(len(of_detection)) - (ends - counts - before)[of_detection]  # inside the detection's pairs
        of_object = first[of_detection] + place
        overlaps = _intersection_over_union(
            detections.boxes[of_detection], objects.boxes[of_object], objects.crowds[of_object]
        )
        enough = overlaps >= IOU_THRESHOLDS[0]
        kept.append((of_detection[enough], of_object[enough], overlaps[enough]))
        start = stop
    if not kept:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    detection_parts, object_parts, overlap_parts = zip(*kept, strict=True)
    return np.concatenate(detection_parts), np.concatenate(object_parts), np.concatenate(overlap_parts)


def _intersection_over_union(found: Floats, truth: Floats, crowds: Booleans) -> Floats:
    """Row by row, boxes (P, 4) x, y, width, height; with a crowd the share of the detection that lies in it."""
    width = np.minimum(found[:, 0] + found[:, 2], truth[:, 0] + truth[:, 2]) - np.maximum(found[:, 0], truth[:, 0])
    height = np.minimum(found[:, 1] + found[:, 3], truth[:, 1] + truth[:, 3]) - np.maximum(found[:, 1], truth[:, 1])
    apart = (width <= 0) | (height <= 0)
    intersection = np.where(apart, 0.0, width * height)
    found_area = found[:, 2] * found[:, 3]
    union = np.where(crowds, found_area, found_area + truth[:, 2] * truth[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=~apart)


def _starts(values: Integers) -> Integers:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
