"""What a search does next: which trial trains, how far, from what. It executes nothing and knows no Ray.

An executor asks for legs and reports how they ended. A leg is a piece of one run: train this job until this share of
it, beginning from its own newest checkpoint or from another trial's. Everything follows from the record, so an
executor that died is replaced by another one that asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from yolofleet.core.errors import WorkError
from yolofleet.search.schedulers import Halving, Population
from yolofleet.search.searcher import Searcher
from yolofleet.search.space import Values
from yolofleet.search.trials import Measurement, Trial, Trials
from yolofleet.specs.search_parts import BudgetSpec

COMPLETED = "completed"
STOPPED = "stopped"
MOST_FAILURES = 3
"""Failures from the start on, without one result, that end a search."""


class Pause(Enum):
    """What an executor is told where there is no leg for it."""

    WAIT = "wait for a leg to end"
    DONE = "nothing is left to do"


@dataclass(frozen=True)
class Donor:
    """Where a run begins from: another trial's run, at its checkpoint of a step."""

    trial: int
    run_name: str
    step: int


@dataclass(frozen=True)
class Leg:
    """A piece of one run.

    Attributes:
        trial: Number of the trial.
        repeat: Which of its runs.
        values: Its parameters.
        run_name: Its run directory.
        share: How far to train, as a share of the whole run.
        donor: Whose weights it begins from, where it has none of its own.
    """

    trial: int
    repeat: int
    values: Values
    run_name: str
    share: float
    donor: Donor | None = None


@dataclass(frozen=True)
class Result:
    """How a leg ended: what was measured, or why there is nothing.

    Attributes:
        step: Steps done.
        share: Share of the run done.
        measured: Metrics by name.
        gpu_seconds: Worker seconds spent.
        failure: Why it failed; the trial gets no more workers.
    """

    step: int = 0
    share: float = 0.0
    measured: dict[str, float] | None = None
    gpu_seconds: float = 0.0
    failure: str | None = None


class Engine:
    """Decides what runs next.

    Args:
        trials: The record.
        searcher: Suggests candidates.
        budget: What may be spent.
        schedule: Successive halving, a population, or None: every trial trains to its end.
        clone: Gives a leg's run its donor's checkpoint, if it has none of its own yet. Called when members exchange and
            before the first leg of every start, so never while a donor trains on.
        clock: Seconds, for the wall clock budget.
    """

    def __init__(
        self,
        trials: Trials,
        searcher: Searcher,
        budget: BudgetSpec,
        schedule: Halving | Population | None = None,
        clone: Callable[[Leg], None] = lambda leg: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trials = trials
        self._searcher = searcher
        self._budget = budget
        self._schedule = schedule
        self._clock = clock
        self._begin = clock()
        self._running: set[tuple[int, int]] = set()
        self._exhausted = False
        self._failures = 0
        self._clone = clone
        self._close_ended()
        self._begin_changed()

    def next_leg(self) -> Leg | Pause:
        """Return the next leg, marked as running until `complete` is told of it.

        Raises:
            WorkError: Nothing but failures so far: the next trial would fail too.
        """
        if self._failures >= MOST_FAILURES and not any(t.measurements for t in self.trials.trials.values()):
            reason = next(str(t.end) for t in reversed(self.trials.trials.values()) if t.failed)
            raise WorkError(
                f"{self._failures} trials failed one after the other and none has given a result; the last one "
                f"{reason}. Put that right; the same command goes on with new trials"
            )
        leg = None if self._spent() else self._choose()
        if leg is None:
            if self._running:
                return Pause.WAIT
            self._finish()
            return Pause.DONE
        self._running.add((leg.trial, leg.repeat))
        return leg

    def complete(self, leg: Leg, result: Result) -> None:
        """Take over how a leg ended."""
        self._running.discard((leg.trial, leg.repeat))
        if result.failure is not None:
            self.trials.end(leg.trial, f"failed: {result.failure}")
            self._failures += 1
        else:
            self.trials.measure(
                leg.trial,
                Measurement(leg.repeat, result.share, result.step, dict(result.measured or {}), result.gpu_seconds),
            )
        self._close_ended()

    def interrupt(self, leg: Leg) -> None:
        """Take a leg back that was lost with its executor; it is handed out again."""
        self._running.discard((leg.trial, leg.repeat))

    def _spent(self) -> bool:
        """Return whether a budget other than the number of trials is used up."""
        hours, limit = self.trials.gpu_seconds / 3600, self._budget.gpu_hours
        if limit is not None and hours >= limit:
            return True
        wall = self._budget.wall_hours
        return wall is not None and (self._clock() - self._begin) / 3600 >= wall

    def _choose(self) -> Leg | None:
        trials = self.trials.trials
        for trial in trials.values():  # what was begun goes first: after a restart, what was running
            if trial.end is None and (leg := self._unfinished(trial)) is not None:
                return leg
        if isinstance(self._schedule, Halving):
            running = {number for number, repeat in self._running if repeat == 0}
            if (best := self._schedule.promoted(list(trials.values()), running)) is not None:
                return self._leg(best, 0, self._schedule.share(best, self._schedule.rung(best)))
        if isinstance(self._schedule, Population):
            self._exchange(self._schedule)
            for trial in trials.values():
                if trial.end is None and (leg := self._unfinished(trial)) is not None:
                    return leg
        if (new := self._new_trial()) is not None:
            return self._unfinished(new)
        if isinstance(self._schedule, Halving) and not self._running:
            last = self._schedule.best_waiting(list(trials.values()))
            if last is not None:
                return self._leg(last, 0, self._schedule.share(last, self._schedule.rung(last)))
        return None

    def _unfinished(self, trial: Trial) -> Leg | None:
        """Return the leg of a trial that has not come as far as it shall without anyone's leave."""
        wanted = self._first_goal(trial)
        for repeat in range(self.trials.repeats):
            newest = trial.at(repeat)
            done = newest.share if newest is not None else 0.0
            if done < wanted - 1e-9 and (trial.number, repeat) not in self._running:
                return self._leg(trial, repeat, wanted)
        return None

    def _first_goal(self, trial: Trial) -> float:
        if isinstance(self._schedule, Halving):
            return self._schedule.share(trial, 0)
        if isinstance(self._schedule, Population):
            return self._schedule.share(trial.passed + 1)
        return 1.0

    def _leg(self, trial: Trial, repeat: int, share: float) -> Leg:
        donor = None
        if trial.exchanges and isinstance(self._schedule, Population):
            last = trial.exchanges[-1]
            giver = self.trials.trials[last.donor]
            # The donor's run as it was at the exchange: one that it began itself later on does not count.
            before = [exchange.number for exchange in giver.exchanges if exchange.number < last.number]
            name = f"{giver.number:04d}" + (f"-exchange{before[-1]}" if before else "")
            measured = giver.at_share(self._schedule.share(last.number))
            donor = Donor(giver.number, name, measured.step if measured is not None else 0)
        return Leg(trial.number, repeat, trial.values, trial.run_name(repeat), share, donor)

    def _new_trial(self) -> Trial | None:
        limit = self._budget.trials
        if self._exhausted or (limit is not None and len(self.trials.trials) >= limit):
            return None
        suggestion = self._searcher.suggest(self.trials.history())
        if suggestion is None:
            self._exhausted = True
            return None
        for refused in suggestion.refused:
            self.trials.refuse(refused)
        return self.trials.suggest(suggestion.observation)

    def _exchange(self, population: Population) -> None:
        """Let members exchange where all of them wait at the same place."""
        if self._budget.trials is None or len(self.trials.trials) < self._budget.trials or self._running:
            return
        members = [trial for trial in self.trials.trials.values() if not trial.failed]
        number = min((member.passed for member in members), default=0) + 1
        share = population.share(number)
        if share >= 1 or any(member.at_share(share) is None for member in members):
            return
        changed = population.exchanges(members, number)
        for member in members:
            if member.passed < number:
                self.trials.exchange(member.number, changed.get(member.number), number)
        self._begin_changed()

    def _begin_changed(self) -> None:
        """Give every changed member its donor's checkpoint; those that have one are left alone."""
        for trial in self.trials.trials.values():
            if trial.exchanges and trial.end is None:
                leg = self._leg(trial, 0, 1.0)
                if leg.donor is not None:
                    self._clone(leg)

    def _close_ended(self) -> None:
        """Record the end of trials whose runs have all come to theirs."""
        for trial in list(self.trials.trials.values()):
            if trial.end is not None:
                continue
            newest = [trial.at(repeat) for repeat in range(self.trials.repeats)]
            if all(entry is not None and entry.share >= 1 - 1e-9 for entry in newest):
                self.trials.end(trial.number, COMPLETED)

    def _finish(self) -> None:
        """Record the end of trials that wait at a rung for leave that will not come; a used-up budget leaves them."""
        if self._spent() or not isinstance(self._schedule, Halving):
            return
        for trial in list(self.trials.trials.values()):
            if trial.end is None:
                rung = self._schedule.rung(trial)
                self.trials.end(trial.number, f"{STOPPED}: not among the best of rung {rung}")
