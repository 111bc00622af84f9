"""Asynchronous successive halving (ASHA; Li et al. 2020): only the best of each rung train on.

A trial trains to its first rung and waits there, its checkpoint in its run directory. Whenever a worker is free, the
best waiting trial that is among the best 1 / reduction of its rung goes on to the next one; where there is none, a new
trial starts. Rungs lie at the same share of each trial's training, or at the same compute spent: then a large model
has trained less at a rung than a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from yolofleet.search.ranking import best_first, objective_row
from yolofleet.search.trials import Trial
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
