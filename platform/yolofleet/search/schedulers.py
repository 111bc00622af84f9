"""Population based training (Jaderberg et al. 2017): the worst members go on from the best members' weights.

All members train to the same share of the run and are compared; each of the worst takes the checkpoint of one of the
best (weights, averaged weights and momentum, byte for byte) and that one's parameters, changed a little. Members wait
for each other at an exchange, so who copies whom depends on the measurements and the seed alone.

Asynchronous successive halving (ASHA; Li et al. 2020): only the best of each rung train on.

A trial trains to its first rung and waits there, its checkpoint in its run directory. Whenever a worker is free, the
best waiting trial that is among the best 1 / reduction of its rung goes on to the next one; where there is none, a new
trial starts. Rungs lie at the same share of each trial's training, or at the same compute spent: then a large model
has trained less at a rung than a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.search.ranking import best_first, objective_row
from yolofleet.search.space import Parameters, Values
from yolofleet.search.trials import Exchange, Trial
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search_parts import Objective, SchedulerSpec


@dataclass(frozen=True)
class Halving:
    """The rungs of a search.

    Attributes:
        spec: Reduction, number of rungs, and what they are measured in.
        objectives: What is wanted.
        compute: Compute of a trial's whole training.
        largest_compute: That of the largest candidate: rungs by compute end there.
    """

    spec: SchedulerSpec
    objectives: Sequence[Objective]
    compute: Callable[[Trial], float]
    largest_compute: float

    def share(self, trial: Trial, rung: int) -> float:
        """Return the share of a trial's training that a rung asks for; 1 at the end and for what is over before."""
        if rung >= self.spec.rungs:
            return 1.0
        part = self.spec.reduction ** (rung - self.spec.rungs)
        if self.spec.measure == "compute":
            part *= self.largest_compute / self.compute(trial)
        return min(part, 1.0)

    def rung(self, trial: Trial) -> int:
        """Return the number of rungs that a trial has reached; ``rungs + 1`` when it has trained to its end."""
        reached = 0
        while reached <= self.spec.rungs and trial.at_share(self.share(trial, reached)) is not None:
            reached += 1
        return reached

    def promoted(self, trials: Sequence[Trial], running: Collection[int] = ()) -> Trial | None:
        """Return the waiting trial that may go on, the farthest first; None where none may.

        Args:
            trials: All trials. One that trains on from a rung was promoted: it still counts among the best of the rung.
            running: Numbers of the trials that train at the moment.
        """
        for rung in reversed(range(self.spec.rungs)):
            there = [trial for trial in trials if not trial.failed and self.rung(trial) > rung]
            for trial in self._best_first(there, rung)[: int(len(there) / self.spec.reduction)]:
                if self.rung(trial) == rung + 1 and trial.end is None and trial.number not in running:
                    return trial
        return None

    def best_waiting(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the best of the farthest waiting trials where nothing has trained to its end yet."""
        if any(self.rung(trial) > self.spec.rungs for trial in trials):
            return None
        for rung in reversed(range(self.spec.rungs)):
            there = [trial for trial in trials if trial.end is None and self.rung(trial) == rung + 1]
            if there:
                return self._best_first(there, rung)[0]
        return None

    def _best_first(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        return [trials[index] for index in best_first([self._row(trial, rung) for trial in trials])]

    def _row(self, trial: Trial, rung: int) -> list[float]:
        measurement = trial.at_share(self.share(trial, rung))
        measured = measurement.values if measurement is not None else {}
        return objective_row(self.objectives, trial.observation.figures | measured)


CHANGEABLE = ("hyperparameters.", "assignment.")
"""Groups of a job that may change between two steps of one run: neither shapes nor the number of steps follow them."""
FIXED = ("hyperparameters.ema_", "hyperparameters.warmup_epochs")


@dataclass(frozen=True)
class Population:
    """A population and its exchanges.

    Attributes:
        spec: Number of exchanges, quantile and factors.
        objectives: What is wanted.
        parameters: The free parameters.
        seed: Decides who copies whom, and how parameters change.
    """

    spec: SchedulerSpec
    objectives: Sequence[Objective]
    parameters: Parameters
    seed: int

    def share(self, exchange: int) -> float:
        """Return the share of the run at which an exchange (from 1) takes place; the one after the last is the end."""
        return min(exchange / (self.spec.rungs + 1), 1.0)

    def exchanges(self, members: Sequence[Trial], number: int) -> dict[int, Exchange]:
        """Return which members change at an exchange, by trial number.

        Args:
            members: All members, each measured at the exchange's share.
            number: Which exchange, from 1.
        """
        share = self.share(number)
        alive = [member for member in members if not member.failed]
        rows = []
        for member in alive:
            measurement = member.at_share(share)
            known = member.observation.figures | (measurement.values if measurement else {})
            rows.append(objective_row(self.objectives, known))
        order = [alive[index] for index in best_first(rows)]
        count = int(len(order) * self.spec.quantile)
        changed = {}
        for member in order[len(order) - count :]:
            random = np.random.default_rng((self.seed, number, member.number))
            donor = order[int(random.integers(count))]
            changed[member.number] = Exchange(number, donor.number, self._changed(donor.values, random))
        return changed

    def _changed(self, values: Values, random: np.random.Generator) -> Values:
        return {
            name: _perturbed(self.parameters.by_name[name], value, self.spec.factors, random)
            for name, value in values.items()
        }


def _perturbed(parameter: Parameter, value: Any, factors: tuple[float, float], random: np.random.Generator) -> Any:
    """Return a value near another: a number times a factor, a choice moved to a neighbour."""
    factor = factors[int(random.integers(2))]
    if parameter.choice is not None:
        place = parameter.options.index(value) + (1 if factor > 1 else -1)
        return parameter.options[min(max(place, 0), len(parameter.options) - 1)]
    low, high = parameter.range
    coordinate = parameter.coordinate(min(max(value * factor, low), high))
    return parameter.at(min(max(coordinate, 0.0), 1.0 - 1e-12))


def check_changeable(paths: Sequence[str]) -> None:
    """Refuse parameters that cannot change while a model trains.

    Args:
        paths: Dotted paths that the space's parameters set.

    Raises:
        UserError: Names the parameter and what may stand in its place.
    """
    for path in paths:
        if not path.startswith(CHANGEABLE) or path.startswith(FIXED):
            raise UserError(
                f"scheduler population: '{path}' cannot change while a model trains, so weights cannot be copied "
                f"across it; only parameters under {' and '.join(group.rstrip('.') for group in CHANGEABLE)} can. "
                "Use scheduler asha for the others"
            )
