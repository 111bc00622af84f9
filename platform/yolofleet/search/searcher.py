"""The searcher: suggests the next candidate that may train, by the algorithm that ``algorithm.name`` chooses.

Every candidate is screened before it is suggested. One that breaks a limit is returned as refused, so that the record
holds it and the algorithm learns from it, and never becomes a trial.

An algorithm is built once for a search and asked for candidates. A candidate must depend on the history, on the number
of the draw and on the seed alone: then a search that was stopped suggests the same candidates when it resumes. A new
algorithm is one class, registered with ``@ALGORITHMS.register("NAME")`` here or in a plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from yolofleet.core.errors import WorkError
from yolofleet.core.extension_points import ExtensionPoint
from yolofleet.search import history as record
from yolofleet.search.history import History, Observation
from yolofleet.search.space import Parameters, Values, even_point, key_of, random_point
from yolofleet.specs import search_parts
from yolofleet.specs.search_parts import AlgorithmSpec, Limit, Objective

if TYPE_CHECKING:
    from yolofleet.search.feasibility import Screened

MOST_DRAWS = 20_000
"""Candidates drawn for one suggestion before the search gives up."""

Draw = tuple[Values, dict[str, Any]]
"""A candidate, and what the algorithm needs stored with it in the record (often nothing)."""


@dataclass(frozen=True)
class SearchProblem:
    """What a searcher and its algorithm are built from."""

    parameters: Parameters
    objectives: Sequence[Objective]
    screen: Callable[[Values], Screened]
    """Profiles a candidate without training it."""
    algorithm: AlgorithmSpec
    """Name and settings of the algorithm."""
    constraints: Mapping[str, Limit] = field(default_factory=dict)
    """Limits by figure."""
    known: frozenset[str] = frozenset()
    """Metrics that screening knows before a trial."""
    seed: int = 0
    """Decides all draws."""


class Algorithm(Protocol):
    """Chooses candidates."""

    def suggest(self, history: History, number: int) -> Draw | None:
        """Return a candidate, or None where there is none left; it may break a limit or repeat an earlier one.

        Args:
            history: Every candidate so far, refused ones included, in the order of suggestion.
            number: Number of the draw, from 0.
        """
        ...


ALGORITHMS = cast(ExtensionPoint[Callable[[SearchProblem], Algorithm]], search_parts.ALGORITHMS)
"""Builds each algorithm for a search problem."""


@ALGORITHMS.register("gaussian_process")
class GaussianProcessSearch:
    """Spreads the first trials evenly over the space, then suggests by a Gaussian process."""

    def __init__(self, problem: SearchProblem) -> None:
        from yolofleet.search.model_based import ModelBased

        self._problem = problem
        self._even = QuasiRandom(problem)
        bounds = record.objective_bounds(problem.objectives, problem.constraints)
        self._model = ModelBased(
            problem.parameters, problem.objectives, set(problem.known), bounds, problem.screen, problem.seed
        )

    def suggest(self, history: History, number: int) -> Draw | None:
        """Return the model's candidate; an even point before the start-up trials, or where the model has none."""
        if len(record.observed(history, self._problem.objectives)) >= max(self._problem.algorithm.startup_trials, 2):
            values = self._model.suggest(history, number)
            if values is not None:
                return values, {}
        return self._even.suggest(history, number)


def _optuna(problem: SearchProblem) -> Algorithm:
    from yolofleet.search.optuna_based import OptunaBased

    return OptunaBased(
        problem.parameters, problem.objectives, list(problem.constraints), problem.algorithm, problem.seed
    )


for _name in ("tpe", "nsga2", "nsga3"):
    ALGORITHMS.register(_name)(_optuna)


@ALGORITHMS.register("quasi_random")
class QuasiRandom:
    """Fills the space evenly, by a scrambled Halton sequence."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem

    def suggest(self, history: History, number: int) -> Draw | None:
        """Return the candidate at a point of the sequence."""
        parameters = self._problem.parameters
        return parameters.at(even_point(self._problem.seed, number, len(parameters))), {}


@ALGORITHMS.register("random")
class Random:
    """Draws uniformly from the space."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem

    def suggest(self, history: History, number: int) -> Draw | None:
        """Return the candidate at a random point."""
        parameters = self._problem.parameters
        return parameters.at(random_point(self._problem.seed, number, len(parameters))), {}


@ALGORITHMS.register("grid")
class Grid:
    """Goes through every combination once, in order."""

    def __init__(self, problem: SearchProblem) -> None:
        self._grid = problem.parameters.grid()

    def suggest(self, history: History, number: int) -> Draw | None:
        """Return the first combination that was not suggested yet."""
        known = record.keys(history)
        return next(((values, {}) for values in self._grid if key_of(values) not in known), None)


@dataclass(frozen=True)
class Suggestion:
    """A feasible candidate, and the candidates that were drawn and refused before it."""

    observation: Observation
    refused: list[Observation]


class Searcher:
    """Suggests candidates.

    Raises:
        UserError: The algorithm is not registered, or needs a package that is not installed.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._num_candidates = problem.parameters.num_candidates
        self._screen = problem.screen
        self._algorithm = ALGORITHMS.get(problem.algorithm.name)(problem)

    def suggest(self, history: History) -> Suggestion | None:
        """Return the next candidate, or None where all have been suggested.

        Args:
            history: Every candidate so far, refused ones included, in the order of suggestion.

        Raises:
            WorkError: No feasible candidate among very many draws.
        """
        refused: list[Observation] = []
        known = record.keys(history)
        most = self._num_candidates
        for number in range(len(history), len(history) + MOST_DRAWS):
            if most is not None and len(known) >= most:
                return None
            draw = self._algorithm.suggest([*history, *refused], number)
            if draw is None:
                return None
            values, notes = draw
            if (key := key_of(values)) in known:
                continue
            known.add(key)
            screened = self._screen(values)
            entry = Observation(values, screened.figures, violations=screened.violations, notes=notes)
            if screened.feasible:
                return Suggestion(entry, refused)
            refused.append(entry)
        if most is not None:
            return None
        raise WorkError(
            f"no new candidate among {MOST_DRAWS} meets the constraints; loosen them, or widen the ranges of the "
            "parameters"
        )
