"""Whether anchors suit the boxes of a dataset, and better ones where they do not.

A box can only be learned where an anchor's width and height both differ from it by less than the factor ``ratio_limit``
(``anchor_t``). The share of boxes for which any anchor does is the best possible recall. Fitting follows the published
way, k-means and then an evolution that keeps every random change which fits better, with one difference: k-means looks
at the logarithms of the sizes, because the fit is a matter of ratios; on pixels the largest boxes draw all centres to
themselves. Everything is a pure function of the boxes and the seed.

The boxes come from a survey of the dataset, which reads annotations alone: no image is fetched or decoded. The weights
of images with rare classes are computed from the same survey.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.order import Purpose, keyed_generator
from yolofleet.data.records import ImageRecord, SampleError

REMOTE_THREADS = 32
LOCAL_THREADS = 1


@dataclass(frozen=True)
class Survey:
    """Every box that training may see (crowds and boxes without area left out), one row each."""

    sizes: NDArray[np.float64]
    """(n, 2) float64 width and height as shares of the image's longer side."""
    classes: NDArray[np.int64]
    """(n,) int64 class indices."""
    samples: NDArray[np.int64]
    """(n,) int64 numbers of the samples that hold them."""
    num_surveyed: int
    """Samples that were read."""
    num_samples: int
    """Samples of the dataset."""


def survey_boxes(dataset: ShardDataset, most_samples: int | None = None) -> Survey:
    """Read annotations: all, or ``most_samples`` of them spread evenly over the dataset.

    Raises:
        StorageError: A shard or an index cannot be read.
    """
    total = len(dataset)
    count = total if most_samples is None else min(most_samples, total)
    numbers = (np.arange(count) * total) // max(count, 1)
    sizes, classes, samples = [np.empty((0, 2))], [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for number, record in _records(dataset, numbers):
        longer = max(record.width, record.height)
        kept = ~record.iscrowd & (record.boxes[:, 2:] > 0).all(axis=1)
        if kept.any():
            sizes.append(record.boxes[kept, 2:] / longer)
            classes.append(record.classes[kept])
            samples.append(np.full(int(kept.sum()), number, dtype=np.int64))
    return Survey(np.concatenate(sizes), np.concatenate(classes), np.concatenate(samples), count, total)


def _records(dataset: ShardDataset, numbers: NDArray[np.int64]) -> Iterator[tuple[int, ImageRecord]]:
    """Yield number and annotation of samples, in order; damaged ones are left out (reading the image counts them)."""
    num_threads = REMOTE_THREADS if dataset.is_remote else LOCAL_THREADS
    with ThreadPoolExecutor(num_threads, thread_name_prefix="survey") as pool:
        for chunk in _chunks(numbers.tolist(), 64 * num_threads):
            for number, record in zip(chunk, pool.map(lambda n: _record(dataset, n), chunk), strict=True):
                if record is not None:
                    yield number, record


def _chunks(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _record(dataset: ShardDataset, number: int) -> ImageRecord | None:
    try:
        return dataset.read_record(number, by_range=dataset.is_remote)[1]
    except SampleError:
        return None


def image_weights(survey: Survey, num_classes: int, share: float) -> NDArray[np.float64]:
    """Return how often each sample is drawn per epoch in the long run: (num_samples,), 1 on average.

    Args:
        survey: All boxes of the dataset.
        num_classes: Classes of the dataset.
        share: 0 draws every image once, 1 by its weight alone (an image without boxes is then never drawn); between
            them the two are mixed.
    """
    counts = np.bincount(survey.classes, minlength=num_classes)
    rarity = 1.0 / np.maximum(counts, 1)
    weights = np.bincount(survey.samples, weights=rarity[survey.classes], minlength=survey.num_samples)
    mean = weights.mean() if len(weights) else 0.0
    return (1.0 - share) + share * weights / mean if mean > 0 else np.ones(survey.num_samples)


GOOD_RECALL = 0.98
"""Recall below which anchors are fitted anew, as published."""
LEAST_SIDE_PIXELS = 2.0
"""Boxes smaller than this on both sides are no guide for anchors, as published."""
MOST_BOXES_FITTED = 20_000
KMEANS_ROUNDS = 30
GENERATIONS = 1000
MUTATED_SHARE = 0.9
MUTATION_SIGMA = 0.1
SMALLEST_CHANGE, LARGEST_CHANGE = 0.3, 3.0
ROWS_AT_A_TIME = 65_536

Sizes = NDArray[np.float64]
"""(n, 2) widths and heights in pixels of the network's input."""
Anchors = tuple[tuple[tuple[float, float], ...], ...]
"""Width and height of each anchor of each level, in pixels."""


@dataclass(frozen=True)
class AnchorFit:
    """How well anchors suit boxes.

    Attributes:
        recall: Share of the boxes that at least one anchor can learn (best possible recall).
        anchors_per_box: Anchors that can learn a box, on average.
        fit: Mean over the boxes of the best anchor's fit, 1 being a perfect one; boxes out of reach count 0.
        level_shares: Share of the boxes that each level can learn.
    """

    recall: float
    anchors_per_box: float
    fit: float
    level_shares: tuple[float, ...]


def anchor_fit(sizes: Sizes, anchors: Anchors, ratio_limit: float) -> AnchorFit:
    """Measure anchors against boxes.

    Args:
        sizes: n boxes; with none, everything is 0.
        anchors: Levels of equally many anchors each.
        ratio_limit: Largest ratio between a box's and an anchor's sides (``anchor_t``).
    """
    table = np.array(anchors, dtype=np.float64).reshape(-1, 2)
    num_levels = len(anchors)
    num_reached, pairs, fit, by_level = 0, 0, 0.0, np.zeros(num_levels)
    for start in range(0, len(sizes), ROWS_AT_A_TIME):
        ratios = _ratios(sizes[start : start + ROWS_AT_A_TIME], table)  # (rows, levels x anchors)
        within = ratios < ratio_limit
        best = ratios.min(axis=1)
        num_reached += int(within.any(axis=1).sum())
        pairs += int(within.sum())
        fit += float((1.0 / best[best < ratio_limit]).sum())
        by_level += within.reshape(len(ratios), num_levels, -1).any(axis=2).sum(axis=0)
    count = max(len(sizes), 1)
    return AnchorFit(num_reached / count, pairs / count, fit / count, tuple((by_level / count).tolist()))


def large_enough(sizes: Sizes) -> NDArray[np.bool_]:
    """Return which boxes anchors can be fitted to: those with a side of 2 pixels or more."""
    return np.asarray((sizes >= LEAST_SIDE_PIXELS).any(axis=1), dtype=np.bool_)


def fit_anchors(sizes: Sizes, num_levels: int, num_anchors: int, ratio_limit: float, seed: int) -> Anchors:
    """Return anchors that suit boxes: k-means, then evolution; sorted by area, the smallest on the finest level.

    Args:
        sizes: n boxes; those below 2 pixels on both sides are left out, and more than 20,000 are thinned out evenly.
        num_levels: Levels of the detector.
        num_anchors: Anchors of each level.
        ratio_limit: As in `anchor_fit`.
        seed: Decides where k-means starts and how evolution goes.

    Raises:
        UserError: There is no box to fit.
    """
    usable = sizes[large_enough(sizes)]
    if not len(usable):
        raise UserError(
            f"none of {plural(len(sizes), 'box')} has a side of {LEAST_SIDE_PIXELS:g} pixels or more, so there is "
            "nothing to fit anchors to; use a larger image size, or the anchors of the model"
        )
    thinned = usable[
        (np.arange(min(len(usable), MOST_BOXES_FITTED)) * len(usable)) // min(len(usable), MOST_BOXES_FITTED)
    ]
    generator = keyed_generator(seed, Purpose.ANCHORS)
    anchors = _k_means(thinned, num_levels * num_anchors, generator)
    anchors = _evolve(thinned, anchors, ratio_limit, generator)
    by_area = np.argsort(anchors.prod(axis=1), kind="stable")
    levels = np.maximum(anchors[by_area], 1.0).reshape(num_levels, num_anchors, 2).tolist()
    return tuple(tuple((round(width, 2), round(height, 2)) for width, height in level) for level in levels)


def _ratios(sizes: Sizes, table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest ratio between the sides of each box and each anchor: (n, anchors), 1 where equal."""
    apart = sizes[:, None] / table[None]  # (n, anchors, 2)
    return np.asarray(np.maximum(apart, 1.0 / np.maximum(apart, 1e-12)).max(axis=2), dtype=np.float64)


def _k_means(sizes: Sizes, count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return k-means centres of the sizes: (count, 2), of their logarithms, for the fit is a matter of ratios."""
    points = np.log(np.maximum(sizes, 1e-9))
    centres = points[[int(generator.integers(len(points)))]]
    # Start far from each other: a point is chosen by its squared distance to the nearest centre (k-means++).
    while len(centres) < count:
        distance = _squared_distances(points, centres).min(axis=1)
        total = float(distance.sum())
        chance = distance / total if total > 0 else np.full(len(points), 1.0 / len(points))
        centres = np.concatenate([centres, points[[int(generator.choice(len(points), p=chance))]]])
    # Lloyd's rounds: points go to their nearest centre, centres to the mean of their points.
    for _ in range(KMEANS_ROUNDS):
        owner = _squared_distances(points, centres).argmin(axis=1)
        members = np.bincount(owner, minlength=count)
        sums = np.stack([np.bincount(owner, weights=points[:, axis], minlength=count) for axis in range(2)], axis=1)
        moved = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    return np.asarray(np.exp(centres), dtype=np.float64)


def _squared_distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, k) squared distances."""
    return np.asarray(((points[:, None] - centres[None]) ** 2).sum(axis=2), dtype=np.float64)


def _evolve(
    sizes: Sizes, anchors: NDArray[np.float64], ratio_limit: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return anchors after random changes of which every better one is kept."""
    logs = np.log(np.maximum(sizes, 1e-9))  # (n, 2)
    limit = np.log(ratio_limit)

    def fitness(candidate: NDArray[np.float64]) -> float:
        apart = np.abs(logs[:, :1] - np.log(candidate[:, 0]))  # (n, anchors)
        np.maximum(apart, np.abs(logs[:, 1:] - np.log(candidate[:, 1])), out=apart)
        nearest = apart.min(axis=1)
        return float(np.exp(-nearest[nearest < limit]).sum())

    best = fitness(anchors)
    for _ in range(GENERATIONS):
        touched = generator.random(anchors.shape) < MUTATED_SHARE
        change = 1.0 + touched * generator.random() * generator.normal(size=anchors.shape) * MUTATION_SIGMA
        candidate = np.maximum(anchors * np.clip(change, SMALLEST_CHANGE, LARGEST_CHANGE), LEAST_SIDE_PIXELS)
        if (reached := fitness(candidate)) > best:
            anchors, best = candidate, reached
    return anchors
