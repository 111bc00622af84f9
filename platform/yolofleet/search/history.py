"""The history of a search: all candidates in the order of suggestion, their figures and results, and their ranking.

It is all that a search algorithm knows, so an algorithm resumes from the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolofleet.search.pareto import front
from yolofleet.search.space import Values, key_of
from yolofleet.specs.search_parts import Limit, Objective


@dataclass(frozen=True)
class Observation:
    """One candidate."""

    values: Values
    """Its parameters."""
    figures: dict[str, float] = field(default_factory=dict)
    """Figures known before it trains."""
    measured: dict[str, float] = field(default_factory=dict)
    """Metrics that its trial reported; empty before."""
    share: float = 1.0
    """Share of its training after which they were measured."""
    violations: dict[str, float] = field(default_factory=dict)
    """The limits that it breaks, and how far; such a candidate is refused."""
    failed: bool = False
    """Whether its trial failed."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Data of the algorithm that suggested it."""

    @property
    def refused(self) -> bool:
        """Whether it breaks a limit, so that it never trains."""
        return bool(self.violations)

    def value(self, metric: str) -> float | None:
        """Return a measured metric or a figure; None where there is neither."""
        value = self.measured.get(metric)
        return self.figures.get(metric) if value is None else value

    def objectives(self, objectives: Sequence[Objective]) -> list[float] | None:
        """Return all objectives, signed so that more is better; None where one is missing."""
        signed = []
        for objective in objectives:
            value = self.value(objective.metric)
            if value is None:
                return None
            signed.append(objective.sign * value)
        return signed


History = Sequence[Observation]


def observed(history: History, objectives: Sequence[Objective]) -> list[Observation]:
    """Return the candidates that have every objective."""
    return [entry for entry in history if not entry.refused and entry.objectives(objectives) is not None]


def running(history: History, objectives: Sequence[Objective]) -> list[Observation]:
    """Return the candidates whose results are still to come."""
    return [
        entry for entry in history if not entry.refused and not entry.failed and entry.objectives(objectives) is None
    ]


def keys(history: History) -> set[str]:
    """Return the keys of all candidates."""
    return {key_of(entry.values) for entry in history}


def objective_bounds(objectives: Sequence[Objective], constraints: Mapping[str, Limit]) -> dict[str, float]:
    """Return, for each objective that is limited on its bad side, that limit."""
    bounds = {}
    for objective in objectives:
        if (limit := constraints.get(objective.metric)) is not None:
            bound = limit.max if objective.goal == "min" else limit.min
            if bound is not None:
                bounds[objective.metric] = bound
    return bounds


def reference_point(history: History, objectives: Sequence[Objective], bounds: Mapping[str, float]) -> list[float]:
    """Return the reference point of the hypervolume, signed so that more is better.

    Each coordinate is the objective's own ``reference``, else the limit on it, else the worst measured value.

    Args:
        history: Candidates so far.
        objectives: The objectives.
        bounds: Limits by metric (`objective_bounds`).
    """
    rows = [row for entry in observed(history, objectives) if (row := entry.objectives(objectives)) is not None]
    point = []
    for index, objective in enumerate(objectives):
        given = objective.reference if objective.reference is not None else bounds.get(objective.metric)
        worst = min((row[index] for row in rows), default=0.0)
        point.append(worst if given is None else objective.sign * given)
    return point


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
