"""The searcher: suggests the next candidate that may train, whichever algorithm chooses it.

Every candidate is screened before it is suggested. One that breaks a limit is returned as refused, so that the record
holds it and the algorithm learns from it, and never becomes a trial. All that the searcher knows is the history that it
is given, so a search that was stopped resumes from its record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yolofleet.core.errors import WorkError
from yolofleet.search import history as record
from yolofleet.search.algorithms import ALGORITHMS, SearchProblem
from yolofleet.search.feasibility import Screened
from yolofleet.search.history import History, Observation
from yolofleet.search.space import Parameters, Values, key_of
from yolofleet.specs.search_parts import AlgorithmSpec, Limit, Objective

MOST_DRAWS = 20_000
"""Candidates drawn for one suggestion before the search gives up."""


@dataclass(frozen=True)
class Suggestion:
    """A feasible candidate, and the candidates that were drawn and refused before it."""

    observation: Observation
    refused: list[Observation]


class Searcher:
    """Suggests candidates.

    Args:
        parameters: The free parameters.
        objectives: The objectives.
        constraints: Limits by figure.
        algorithm: The algorithm and its settings.
        screen: Profiles a candidate without training it.
        known: Metrics that screening knows before a trial.
        seed: Decides all draws.

    Raises:
        UserError: The algorithm is not registered, or needs a package that is not installed.
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
        self._num_candidates = parameters.num_candidates
        self._screen = screen
        problem = SearchProblem(parameters, objectives, constraints, algorithm, screen, frozenset(known), seed)
        self._algorithm = ALGORITHMS.get(algorithm.name)(problem)

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
