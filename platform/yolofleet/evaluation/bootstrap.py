"""Paired bootstrap over images: confidence intervals for the difference of two detectors.

Each replicate draws as many images as there are, with replacement, the same ones for both detectors, and computes the
figures again. Matching is inside one image, so it is done once; a replicate is only a weight for each image. A class is
reduced to its hits in the order of their scores and the number of false detections before each, so a replicate costs a
few sums over hits: a thousand of them on 5,000 images and 500,000 detections take half a minute.

The figures of a replicate are those of pycocotools on the drawn images, where an image drawn twice counts as two. The
interval is that of the replicates' percentiles, moved so that their mean is the measured difference: a replicate has
fewer different images, which with a few dozen of them shifts AP by more than chance does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.image_matches import ClassMatches, Matches, match_images
from yolofleet.evaluation.precision_recall import (
    ALL,
    ALLOWED,
    AREA_RANGES,
    IOU_50,
    IOU_75,
    LARGE,
    MEDIUM,
    RECALL_LEVELS,
    SMALL,
    Floats,
    Integers,
)
from yolofleet.evaluation.protocol import COCO_PROTOCOL

CELLS_AT_ONCE = 16_000_000
"""Most detections of a class times replicates in one pass: bounds the memory to about 200 MB."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FigureSamples:
    """Figures of B replicates; NaN where there was nothing to measure.

    Attributes:
        figures: (12, B) in the order of COCO_PROTOCOL.figure_names.
        per_class: (K, B) AP of each class.
    """

    figures: Floats
    per_class: Floats


def draw_images(num_images: int, num_replicates: int, seed: int) -> Integers:
    """Return how often each image is drawn in each replicate, (I, B)."""
    random = np.random.default_rng(seed)
    draws = (random.integers(num_images, size=num_images) for _ in range(num_replicates))
    return np.stack([np.bincount(draw, minlength=num_images) for draw in draws], axis=1)


def sample_figures(matches: Matches, weights: Integers) -> FigureSamples:
    """Compute the figures of every replicate.

    Args:
        matches: The matched detections.
        weights: (I, B) number of times that each image counts.
    """
    samples = np.stack([_class_samples(entry, weights) for entry in matches.classes])  # (K, 12, B)
    # The mean over the classes that have objects in the replicate; the others are NaN and are left out.
    measured = ~np.isnan(samples)
    totals = np.where(measured, samples, 0.0).sum(axis=0)
    counts = measured.sum(axis=0)
    figures = np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)
    return FigureSamples(figures=figures, per_class=samples[:, 0])


def _class_samples(entry: ClassMatches, weights: Integers) -> Floats:
    """Return the twelve figures of one class (12, B), in passes over some replicates that fit the memory."""
    width = max(1, CELLS_AT_ONCE // max(1, len(entry.images)))
    starts = range(0, weights.shape[1], width)
    return np.concatenate([_samples(entry, weights[:, start : start + width]) for start in starts], axis=1)


def _samples(entry: ClassMatches, weights: Integers) -> Floats:
    num_replicates = weights.shape[1]
    num_thresholds = entry.hits.shape[1]
    # A detection counts as often as its image is drawn. Only those that match an object at any threshold are kept in
    # rows (P); of the others it is enough to know how many come before each row.
    match_weights = weights[entry.images[entry.positions]]  # (P, B)
    before = list(_count_detections(entry, weights))  # A times (P, B)
    precision = np.full((num_thresholds, len(AREA_RANGES), num_replicates), np.nan)
    recall = np.full((num_thresholds, len(AREA_RANGES), len(ALLOWED), num_replicates), np.nan)
    drawn_objects = weights[entry.object_images]  # (G, B)
    for a in range(len(AREA_RANGES)):
        num_objects = drawn_objects[entry.object_counts[:, a]].sum(axis=0)  # (B,)
        is_measured = num_objects > 0
        if not is_measured.any():
            continue
        objects = np.maximum(num_objects, 1)
        for t in range(num_thresholds):
            hits = np.flatnonzero(entry.hits[:, t, a])
            # False detections before a hit: all detections of this size up to it, less those that match an object
            # (hits, and matches with objects that do not count).
            matched = entry.matched[:, t, a] & entry.in_range[entry.positions, a]
            num_matched = np.cumsum(match_weights * matched[:, None], axis=0)[hits]
            true = np.cumsum(match_weights[hits], axis=0)
            mean_precision = _mean_precision(true, before[a][hits] - num_matched, objects)
            precision[t, a] = np.where(is_measured, mean_precision, np.nan)
            # Recall with at most 1, 10 and 100 detections an image: the hits of these ranks in their images.
            for m, allowed in enumerate(ALLOWED):
                num_hits = match_weights[hits[entry.ranks[hits] < allowed]].sum(axis=0)
                recall[t, a, m] = np.where(is_measured, num_hits / objects, np.nan)
    by_size = (SMALL, MEDIUM, LARGE)
    return np.stack(
        [
            precision[:, ALL].mean(axis=0),
            precision[IOU_50, ALL],
            precision[IOU_75, ALL],
            *(precision[:, size].mean(axis=0) for size in by_size),
            *(recall[:, ALL, m].mean(axis=0) for m in range(len(ALLOWED))),
            *(recall[:, size, -1].mean(axis=0) for size in by_size),
        ]
    )


def _count_detections(entry: ClassMatches, weights: Integers) -> Iterator[Integers]:
    """Yield for each size range the drawn detections of that size up to and including each match, (P, B)."""
    if not len(entry.positions):
        yield from (np.empty((0, weights.shape[1]), np.int64) for _ in AREA_RANGES)
        return
    # Sums over the stretches between matches, then sums over the stretches: (P, B) numbers are held, not (D, B).
    last = entry.positions[-1] + 1
    starts = np.concatenate(([0], entry.positions[:-1] + 1))
    drawn = weights[entry.images[:last]]  # (D', B)
    for a in range(len(AREA_RANGES)):
        inside = entry.in_range[:last, a]
        counts = drawn if inside.all() else drawn * inside[:, None]
        yield np.cumsum(np.add.reduceat(counts, starts, axis=0), axis=0)


def _mean_precision(true: Integers, false: Integers, num_objects: Integers) -> Floats:
    """Return the mean over the recall levels of the best precision at that level or a higher one, (B,).

    Args:
        true: (H, B) hits up to and including each hit.
        false: (H, B) false detections before each hit.
        num_objects: (B,) objects, at least 1.
    """
    if not len(true):
        return np.zeros(len(num_objects))
    exact = true / (false + true + np.spacing(1))  # pycocotools' rounding term
    best = np.maximum.accumulate(exact[::-1], axis=0)[::-1]
    # Each level takes the precision of the first hit that reaches it; levels that no hit reaches count as 0.
    reached = _levels_reached(true / num_objects)  # (H, B)
    gained = np.diff(reached, prepend=np.zeros((1, len(num_objects)), np.int64), axis=0)
    return np.asarray((best * gained).sum(axis=0) / len(RECALL_LEVELS))


def _levels_reached(recall: Floats) -> Integers:
    """Return the number of recall levels that each recall reaches: by division, then corrected for rounding."""
    last = len(RECALL_LEVELS) - 1
    number = np.minimum((recall * last).astype(np.int64), last)
    number += (number < last) & (RECALL_LEVELS[np.minimum(number + 1, last)] <= recall)
    number -= RECALL_LEVELS[number] > recall
    return number + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One figure of two detectors; None where it could not be measured.

    Attributes:
        name: The figure or the class.
        first: Of the first detector.
        second: Of the second.
        difference: Second less first.
        low: Lower end of the difference's confidence interval.
        high: Upper end.
    """

    name: str
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """How two detectors differ on one dataset.

    Attributes:
        figures: The twelve COCO figures.
        per_class: AP of each class that has objects.
        num_images: Images that both were evaluated on.
        num_replicates: Replicates of the bootstrap.
        confidence: Share of the replicates that lie inside an interval.
    """

    figures: tuple[Difference, ...]
    per_class: tuple[Difference, ...]
    num_images: int
    num_replicates: int
    confidence: float

    def figure(self, name: str) -> Difference:
        """Return one of the twelve figures."""
        return next(entry for entry in self.figures if entry.name == name)


def paired_bootstrap(
    ground_truth: Mapping[str, Any],
    first: Detections,
    second: Detections,
    *,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Differences:
    """Compare two detectors on the same images.

    Args:
        ground_truth: A COCO document.
        first: Detections of the first detector.
        second: Detections of the second detector.
        num_replicates: Number of times that the images are drawn.
        confidence: Share of the replicates that an interval holds.
        seed: Of the draws; the same one gives the same intervals.

    Raises:
        UserError: There are no images.
    """
    both = [match_images(ground_truth, detections) for detections in (first, second)]
    num_images = len(both[0].image_ids)
    once = np.ones((num_images, 1), np.int64)
    drawn = draw_images(num_images, num_replicates, seed)
    exact = [sample_figures(matches, once) for matches in both]
    samples = [sample_figures(matches, drawn) for matches in both]
    names = list(both[0].class_names.values())
    return Differences(
        figures=_differences(
            COCO_PROTOCOL.figure_names, [e.figures for e in exact], [s.figures for s in samples], confidence
        ),
        per_class=tuple(
            entry
            for entry in _differences(names, [e.per_class for e in exact], [s.per_class for s in samples], confidence)
            if entry.first is not None
        ),
        num_images=num_images,
        num_replicates=num_replicates,
        confidence=confidence,
    )


def _differences(
    names: tuple[str, ...] | list[str], exact: list[Floats], samples: list[Floats], confidence: float
) -> tuple[Difference, ...]:
    tails = [(1 - confidence) / 2 * 100, (1 + confidence) / 2 * 100]
    entries = []
    for row, name in enumerate(names):
        first, second = float(exact[0][row, 0]), float(exact[1][row, 0])
        # Paired: both detectors have the same images in a replicate, so what the images have in common cancels out.
        spread = samples[1][row] - samples[0][row]
        spread = spread[~np.isnan(spread)]
        measured = not np.isnan(first) and len(spread) > 0
        low, high = None, None
        if measured:
            # Moved onto the measured difference (see above).
            low, high = (np.percentile(spread, tails) - spread.mean() + (second - first)).tolist()
        entries.append(
            Difference(
                name=name,
                first=first if measured else None,
                second=second if measured else None,
                difference=second - first if measured else None,
                low=low,
                high=high,
            )
        )
    return tuple(entries)
