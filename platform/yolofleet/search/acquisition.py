"""What a trial is expected to add, for candidates whose measured objective is a Gaussian and whose others are known.

With one measured objective and one that is known beforehand (AP and GFLOPs), the expected gain of hypervolume is
exact: over each stretch of the known objective that a candidate would cover, it is the expected improvement over the
best AP there. With a single objective it is the expected improvement. Any other number of objectives is turned into
one by a weighted worst case whose weights are drawn anew for each suggestion (ParEGO, Knowles 2006).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

PARETO_SLACK = 0.05
"""Share of the plain sum in the weighted worst case, which keeps it from preferring dominated points."""


def expected_improvement(mean: Array, deviation: Array, level: Array | float) -> Array:
    """Return the expected excess over a level, for Gaussians of this mean and deviation (more is better)."""
    z = (mean - level) / deviation
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below: Array = torch.special.ndtr(torch.from_numpy(z)).numpy()
    gain: Array = deviation * (z * below + density)
    return np.maximum(gain, 0.0)


def expected_hypervolume_gain(
    mean: Array, deviation: Array, known: Array, front: Array, reference: tuple[float, float]
) -> Array:
    """Return the expected gain of hypervolume of each candidate.

    Args:
        mean: (m,) mean of the measured objective; more is better.
        deviation: (m,) its standard deviation.
        known: (m,) the known objective; more is better (negate what shall be small).
        front: (n, 2) measured and known objective of the points so far; more is better.
        reference: The values that are worth nothing.
    """
    # Only what beats the reference point covers any area.
    inside = front[(front[:, 0] > reference[0]) & (front[:, 1] > reference[1])]
    # Going up along the known objective, the best measured value among the points that reach that far falls in steps.
    edges = np.concatenate([[reference[1]], np.sort(inside[:, 1])])
    levels = np.array([_best_from(inside, edge, reference[0]) for edge in edges])
    uppers = np.append(edges[1:], np.inf)
    # A candidate adds, over the part of each stretch that it reaches, what it is expected to lie above the level there.
    covered = np.clip(np.minimum(known[:, None], uppers) - edges, 0.0, None)  # (m, stretches)
    gains = expected_improvement(mean[:, None], deviation[:, None], levels[None, :])
    total: Array = (covered * gains).sum(axis=1)
    return total


def _best_from(points: Array, edge: float, otherwise: float) -> float:
    """Return the best measured value among the points that lie beyond an edge of the known objective."""
    reaching = points[points[:, 1] > edge, 0]
    return float(reaching.max()) if len(reaching) else otherwise


def weighted_worst_case(points: Array, weights: Array) -> Array:
    """Return one number for each point: the worst of its weighted objectives, scaled to 0..1 (more is better)."""
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    short = weights * (1 - scaled)
    result: Array = -(short.max(axis=1) + PARETO_SLACK * short.sum(axis=1))
    return result
