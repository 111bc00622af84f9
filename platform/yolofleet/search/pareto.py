"""Which candidates nothing else beats, and how much of the objective space they cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(points, objectives); more is better in every column: negate what shall be small."""


def front(points: Points) -> NDArray[np.bool_]:
    """Return which points no other point beats; of equal points the first is kept.

    Args:
        points: (n, objectives), more is better.
    """
    kept = np.zeros(len(points), dtype=bool)
    # The best in the first column first, of equal ones the best in the next: what beats a point stands before it.
    left = np.lexsort((np.arange(len(points)), *-points.T[::-1]))
    while len(left):
        kept[left[0]] = True
        left = left[(points[left] > points[left[0]]).any(axis=1)]
    return kept


def hypervolume(points: Points, reference: Sequence[float]) -> float:
    """Return the volume between the points and a reference point that they beat.

    Two objectives by a sweep; more by slicing along the last one, so it is for fronts of at most some hundred points.

    Args:
        points: (n, objectives), more is better.
        reference: The point that is worth nothing.
    """
    bound = np.asarray(reference, dtype=np.float64)
    inside = points[(points > bound).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    inside = inside[front(inside)]
    if inside.shape[1] == 1:
        return float(inside.max() - bound[0])
    if inside.shape[1] == 2:
        ordered = inside[np.argsort(-inside[:, 0])]  # x falls, so y rises along a front
        heights = np.diff(np.concatenate([[bound[1]], ordered[:, 1]]))
        return float(((ordered[:, 0] - bound[0]) * heights).sum())
    ordered = inside[np.argsort(-inside[:, -1])]
    lower = np.concatenate([ordered[1:, -1], bound[-1:]])
    slices = ordered[:, -1] - lower
    return float(sum(hypervolume(ordered[: i + 1, :-1], bound[:-1].tolist()) * slices[i] for i in range(len(ordered))))
