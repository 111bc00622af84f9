"""The schedulers: how far each trial trains. They are pure functions of the trials so far.

Asynchronous successive halving (ASHA; Li et al. 2020) trains only the best of each rung further. A trial trains to its
first rung and waits there, its checkpoint in its run directory. Whenever a worker is free, the best waiting trial that
is among the best 1 / reduction of its rung trains on to the next rung; where there is none, a new trial starts. Rungs
lie at the same share of each trial's training, or at the same compute: then a large model has done fewer steps at a
rung than a small one.

Population based training (Jaderberg et al. 2017) lets the worst members continue from the best members' weights. All
members train to the same share of the run and are compared. Each of the worst copies the checkpoint and the parameters
of one of the best, and changes the parameters a little. Members wait for each other at an exchange, so who copies whom
depends on the measurements and the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.search.history import best_first, objective_row
from yolofleet.search.space import Parameters, Values
from yolofleet.search.trials import Exchange, Trial
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search_parts import Objective, SchedulerSpec


@dataclass(frozen=True)
class Halving:
    """Successive halving."""

    spec: SchedulerSpec
    """Reduction, number of rungs and their measure."""
    objectives: Sequence[Objective]
    compute: Callable[[Trial], float]
    """Returns the compute of a trial's whole training."""
    largest_compute: float
    """The same of the largest candidate, where rungs by compute end."""

    def share(self, trial: Trial, rung: int) -> float:
        """Return the share of a trial's training at which it reaches a rung; 1 for the rung after the last."""
        if rung >= self.spec.rungs:
            return 1.0
        part = self.spec.reduction ** (rung - self.spec.rungs)
        if self.spec.measure == "compute":
            part *= self.largest_compute / self.compute(trial)
        return min(part, 1.0)

    def rung(self, trial: Trial) -> int:
        """Return how many rungs a trial has reached; ``rungs + 1`` when it has trained to its end."""
        reached = 0
        while reached <= self.spec.rungs and trial.at_share(self.share(trial, reached)) is not None:
            reached += 1
        return reached

    def next_promotion(self, trials: Sequence[Trial], running: Collection[int] = ()) -> Trial | None:
        """Return the waiting trial that trains on next, from the highest rung; None where none is among the best.

        Args:
            trials: All trials.
            running: Numbers of the trials that are training.
        """
        for rung in reversed(range(self.spec.rungs)):
            # A trial that has left a rung was promoted from it: it still counts among the rung's best, so that exactly
            # one in `reduction` is ever promoted.
            reached = [trial for trial in trials if not trial.failed and self.rung(trial) > rung]
            for trial in self._best_first(reached, rung)[: int(len(reached) / self.spec.reduction)]:
                if self.rung(trial) == rung + 1 and trial.end is None and trial.number not in running:
                    return trial
        return None

    def best_waiting(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the best waiting trial of the highest rung; None once a trial has trained to its end."""
        if any(self.rung(trial) > self.spec.rungs for trial in trials):
            return None
        for rung in reversed(range(self.spec.rungs)):
            waiting = [trial for trial in trials if trial.end is None and self.rung(trial) == rung + 1]
            if waiting:
                return self._best_first(waiting, rung)[0]
        return None

    def _best_first(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        rows = [_objectives_at(trial, self.share(trial, rung), self.objectives) for trial in trials]
        return [trials[index] for index in best_first(rows)]


CHANGEABLE = ("hyperparameters.", "assignment.")
"""Groups of a job that may change during a run: shapes and the number of steps do not depend on them."""
FIXED = ("hyperparameters.ema_", "hyperparameters.warmup_epochs")


@dataclass(frozen=True)
class Population:
    """A population and its exchanges."""

    spec: SchedulerSpec
    """Number of exchanges, quantile and factors."""
    objectives: Sequence[Objective]
    parameters: Parameters
    seed: int
    """Decides who copies whom, and how parameters change."""

    def share(self, exchange: int) -> float:
        """Return the share of the run at which an exchange (from 1) happens; the one after the last is the end."""
        return min(exchange / (self.spec.rungs + 1), 1.0)

    def exchanges(self, members: Sequence[Trial], number: int) -> dict[int, Exchange]:
        """Return the members that change at an exchange, by trial number.

        Args:
            members: All members, each measured at the exchange's share.
            number: Number of the exchange, from 1.
        """
        alive = [member for member in members if not member.failed]
        rows = [_objectives_at(member, self.share(number), self.objectives) for member in alive]
        order = [alive[index] for index in best_first(rows)]
        count = int(len(order) * self.spec.quantile)
        changed = {}
        for member in order[len(order) - count :]:
            random = np.random.default_rng((self.seed, number, member.number))
            source = order[int(random.integers(count))]
            changed[member.number] = Exchange(number, source.number, self._perturb_all(source.values, random))
        return changed

    def _perturb_all(self, values: Values, random: np.random.Generator) -> Values:
        return {
            name: _perturb(self.parameters.by_name[name], value, self.spec.factors, random)
            for name, value in values.items()
        }


def _objectives_at(trial: Trial, share: float, objectives: Sequence[Objective]) -> list[float]:
    measurement = trial.at_share(share)
    return objective_row(
        objectives, trial.observation.figures | (measurement.values if measurement is not None else {})
    )


def _perturb(parameter: Parameter, value: Any, factors: tuple[float, float], random: np.random.Generator) -> Any:
    """Return a number multiplied by a factor, or the neighbour of a choice."""
    factor = factors[int(random.integers(2))]
    if parameter.choice is not None:
        index = parameter.options.index(value) + (1 if factor > 1 else -1)
        return parameter.options[min(max(index, 0), len(parameter.options) - 1)]
    low, high = parameter.range
    coordinate = parameter.coordinate(min(max(value * factor, low), high))
    return parameter.at(min(max(coordinate, 0.0), 1.0 - 1e-12))


def check_changeable(paths: Sequence[str]) -> None:
    """Refuse parameters (dotted paths of the job) that cannot change while a model trains.

    Raises:
        UserError: Names the parameter, and which ones can.
    """
    for path in paths:
        if not path.startswith(CHANGEABLE) or path.startswith(FIXED):
            raise UserError(
                f"scheduler population: '{path}' cannot change while a model trains, so weights cannot be copied "
                f"across it; only parameters under {' and '.join(group.rstrip('.') for group in CHANGEABLE)} can. "
                "Use scheduler asha for the others"
            )
