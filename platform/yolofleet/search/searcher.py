"""The searcher: one way to the next candidate, whichever algorithm chooses it.

It screens before it suggests. A candidate that breaks a limit is handed to the record as refused, which the next
suggestion learns from, and never becomes a trial. Everything it knows is the history that it is given, so a search
that was stopped goes on from its record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yolofleet.core.errors import WorkError
from yolofleet.search import history as record
from yolofleet.search.feasibility import Screened
from yolofleet.search.history import History, Observation
from yolofleet.search.model_based import ModelBased
from yolofleet.search.optuna_based import OptunaBased
from yolofleet.search.space import Parameters, Values, even_point, key_of, random_point
from yolofleet.specs.search_parts import AlgorithmSpec, Limit, Objective

MOST_DRAWS = 20_000
"""Candidates looked at for one suggestion before the search gives up."""


@dataclass(frozen=True)
class Suggestion:
    """A feasible candidate, and those that were refused on the way to it."""

    observation: Observation
    refused: list[Observation]


class Searcher:
    """Suggests candidates.

    Args:
        parameters: The free parameters.
        objectives: What is wanted.
        constraints: Limits by figure.
        algorithm: How candidates are chosen.
        screen: Profiles a candidate.
        known: Metrics that screening knows before a trial.
        seed: Decides all draws.
    """

    def __init__(
        self,
        parameters: Parameters,
        *,
        objectives: Sequence[Objective],
        constraints: dict[str, Limit],
        algorithm: AlgorithmSpec,
        screen: Callable[[Values], Screened],
        known: set[str],
        seed: int = 0,
    ) -> None:
        self._parameters = parameters
        self._objectives = list(objectives)
        self._algorithm = algorithm
        self._screen = screen
        self._seed = seed
        self._grid = parameters.grid() if algorithm.name == "grid" else None
        bounds = {
            objective.metric: bound
            for objective in objectives
            if objective.metric in constraints
            and (bound := _bound(constraints[objective.metric], objective)) is not None
        }
        self._model = ModelBased(parameters, objectives, known, bounds, screen, seed)
        self._optuna = (
            OptunaBased(parameters, objectives, list(constraints), algorithm, seed)
            if algorithm.name in ("tpe", "nsga2", "nsga3")
            else None
        )

    def suggest(self, history: History) -> Suggestion | None:
        """Return the next candidate, or None where there is no other one left.

        Args:
            history: Every candidate so far, refused ones included, in the order they were suggested.

        Raises:
            WorkError: No feasible candidate was found among very many.
        """
        refused: list[Observation] = []
        taken = record.keys(history)
        most = self._parameters.num_candidates
        for number in range(len(history), len(history) + MOST_DRAWS):
            if most is not None and len(taken) >= most:
                return None
            drawn = self._draw([*history, *refused], number)
            if drawn is None:
                return None
            values, notes = drawn
            key = key_of(values)
            if key in taken:
                continue
            taken.add(key)
            screened = self._screen(values)
            entry = Observation(values, screened.figures, violations=screened.violations, notes=notes)
            if screened.feasible:
                return Suggestion(entry, refused)
            refused.append(entry)
        if most is not None:
            return None
        raise WorkError(
            f"no new candidate among {MOST_DRAWS} meets the constraints; loosen them, or let the parameters "
            "reach further"
        )

    def _draw(self, history: History, number: int) -> tuple[Values, dict[str, Any]] | None:
        """Return a candidate that may be refused or known; what is drawn depends on history, number and seed alone."""
        if self._grid is not None:
            taken = record.keys(history)
            left = [values for values in self._grid if key_of(values) not in taken]
            return (left[0], {}) if left else None
        if self._optuna is not None:
            return self._optuna.suggest(history, number)
        if self._algorithm.name == "random":
            return self._parameters.at(random_point(self._seed, number, len(self._parameters))), {}
        enough = max(self._algorithm.startup_trials, 2)
        if self._algorithm.name == "gaussian_process" and len(record.observed(history, self._objectives)) >= enough:
            values = self._model.suggest(history, number)
            if values is not None:
                return values, {}
        return self._parameters.at(even_point(self._seed, number, len(self._parameters))), {}


def _bound(limit: Limit, objective: Objective) -> float | None:
    return limit.max if objective.goal == "min" else limit.min
