"""What a searcher knows: candidates that were tried, refused or are running, in the order they were suggested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from yolofleet.search.space import Values, key_of
from yolofleet.specs.search_parts import Objective


@dataclass(frozen=True)
class Observation:
    """One candidate.

    Attributes:
        values: Its parameters.
        figures: What is known of it before it trains.
        measured: What it reported, by metric; empty while it has not.
        share: The share of its training after which that was measured.
        violations: The limits it breaks; such a candidate was refused.
        failed: Whether it ended without a result.
        notes: What the algorithm that suggested it must remember of it.
    """

    values: Values
    figures: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    share: float = 1.0
    violations: dict[str, float] = field(default_factory=dict)
    failed: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether it never got a worker."""
        return bool(self.violations)

    def value(self, metric: str) -> float | None:
        """Return a metric, measured or known, None where it is neither."""
        value = self.measured.get(metric)
        return self.figures.get(metric) if value is None else value

    def objectives(self, objectives: Sequence[Objective]) -> list[float] | None:
        """Return every objective, signed so that more is better; None while one is missing."""
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


def reference_point(history: History, objectives: Sequence[Objective], bounds: dict[str, float]) -> list[float]:
    """Return the point that is worth nothing, signed so that more is better.

    Args:
        history: Candidates so far.
        objectives: What is wanted; one's own ``reference`` counts first.
        bounds: Limits by figure, which count second; else it is the worst that was seen.
    """
    rows = [row for entry in observed(history, objectives) if (row := entry.objectives(objectives)) is not None]
    point = []
    for index, objective in enumerate(objectives):
        given = objective.reference if objective.reference is not None else bounds.get(objective.metric)
        worst = min((row[index] for row in rows), default=0.0)
        point.append(worst if given is None else objective.sign * given)
    return point
