"""Optuna's `GPSampler` on the response surface: the peer of `search_quality.py`, screened as the own search is.

It is helped where that makes it better: the same first trials, evenly spread; both objectives and the exact distance of
every candidate from the limit, refused ones included; runs that diverged raised to three spreads under the median; and
as AP of a refused candidate, which nobody measures, that of the nearest trial. Its own state is built anew for each
suggestion, so that a resumed search would suggest the same again.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import optuna

from response_surface import CONSTRAINTS, MOST_GFLOPS, PARAMETERS, screen
from yolofleet.search import history as record
from yolofleet.search.gaussian_process import without_outliers
from yolofleet.search.history import History, Observation
from yolofleet.search.optuna_based import OptunaBased
from yolofleet.search.searcher import Suggestion
from yolofleet.search.space import Values, even_point
from yolofleet.specs.search_parts import AlgorithmSpec, Objective

STARTUP = AlgorithmSpec().startup_trials
MOST_DRAWS = 200


class GPSamplerSearcher(OptunaBased):
    """Suggests candidates of the response surface, as `Searcher` does."""

    def __init__(self, objectives: Sequence[Objective], seed: int) -> None:
        super().__init__(PARAMETERS, objectives, list(CONSTRAINTS), AlgorithmSpec(name="tpe"), seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it warns that greenlet would make it faster

    def suggest_screened(self, history: History) -> Suggestion:
        """Return the next feasible candidate, and those refused on the way to it."""
        refused: list[Observation] = []
        for number in range(len(history), len(history) + MOST_DRAWS):
            values = self._next([*history, *refused], number)
            screened = screen(values)
            entry = Observation(values, screened.figures, violations=screened.violations)
            if screened.feasible:
                return Suggestion(entry, refused)
            refused.append(entry)
        raise RuntimeError(f"GPSampler suggested nothing feasible in {MOST_DRAWS} draws")

    def _next(self, history: History, number: int) -> Values:
        seen = record.observed(history, self._objectives)
        if len(seen) < STARTUP:
            return PARAMETERS.at(even_point(self._seed, number, len(PARAMETERS)))
        points = np.array([PARAMETERS.coordinates(entry.values) for entry in seen])
        measured = without_outliers(np.array([entry.measured["val_AP"] for entry in seen]))
        study = optuna.create_study(directions=["maximize"] * len(self._objectives))
        for entry in (entry for entry in history if entry.refused or "val_AP" in entry.measured):
            distances = ((points - np.array(PARAMETERS.coordinates(entry.values))) ** 2).sum(axis=1)
            known = {"val_AP": float(measured[distances.argmin()]), "gflops": entry.figures["gflops"]}
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(entry.values),
                    distributions={name: self._distribution(name) for name in entry.values},
                    values=[objective.sign * known[objective.metric] for objective in self._objectives],
                    constraints={"gflops": known["gflops"] / MOST_GFLOPS - 1},
                )
            )
        seed = (self._seed * 1_000_003 + number) % 2**31
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP)
            return self._values(study.ask())
