"""Static image weights: images with rare classes are drawn more often, from the training set's annotations alone.

An image's weight is the sum over its boxes of the inverse frequency of their classes. The published option multiplies
each class by (1 - AP)^2 of the newest evaluation as well; that would make the order of samples depend on the course of
the run, and it is left out: here the sample at a place of the stream stays a pure function of (dataset, seed, place).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.randomness import Purpose, keyed_generator
from yolofleet.data.survey import Survey


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


def draws(weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return how often each sample is drawn in an epoch: (num_samples,), in all as many as there are samples.

    Systematic sampling: each sample is drawn its weight's number of times, rounded down or up by one random number
    for the epoch, so rare images come as often as their weight says in every epoch, not only on average.
    """
    num_samples = len(weights)
    ends = np.cumsum(weights) * (num_samples / weights.sum())
    ends[-1] = num_samples  # rounding must not cost the last draw
    start = float(keyed_generator(seed, Purpose.IMAGE_WEIGHTS, epoch).random())
    # A start close to 1 rounds up to it: that must not add a draw.
    marks = np.minimum(np.floor(ends + start).astype(np.int64), num_samples)
    return np.asarray(np.diff(marks, prepend=0), dtype=np.int64)
