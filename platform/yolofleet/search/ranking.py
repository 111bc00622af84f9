"""The order of trials, best first, for one objective or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from yolofleet.search.pareto import front
from yolofleet.specs.search_parts import Objective


def objective_row(objectives: Sequence[Objective], known: Mapping[str, float]) -> list[float]:
    """Return a trial's objectives, signed so that more is better; a missing metric counts as the worst value."""
    return [entry.sign * known[entry.metric] if entry.metric in known else float("-inf") for entry in objectives]


def best_first(rows: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of rows of objectives (more is better), best first.

    One objective is sorted by value. Several are sorted in layers (non-dominated sorting), each the front of the rows
    that are left, and within a layer by the first objective. Equal rows keep their order.
    """
    if not rows:
        return []
    points = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
    left = np.arange(len(points))
    order: list[int] = []
    while len(left):
        kept = front(points[left]) if points.shape[1] > 1 else np.ones(len(left), dtype=bool)
        layer = left[kept]
        order += layer[np.argsort(-points[layer, 0], kind="stable")].tolist()
        left = left[~kept]
    return order
