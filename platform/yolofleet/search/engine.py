"""The search engine: decides which trial trains next, how far, and from which weights.

It executes nothing and knows nothing of Ray. An executor asks for trial segments and reports their results. A segment
is a part of one run: train this job up to a share of its steps, from its own newest checkpoint or from another trial's.
Every decision follows from the record, so an executor that died is replaced by a new one that asks again.
"""

from __future__ import annotations

import time
from collections import Counter
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
"""A search ends when this many trials have failed one after the other: the next one would fail, too."""
MOST_OUTAGES = 3
"""A search ends when the storage did not answer in so many attempts at one segment."""


class Pause(Enum):
    """The answer where no segment can start now."""

    WAIT = "wait for a running segment to end"
    DONE = "the search is finished"


@dataclass(frozen=True)
class SourceTrial:
    """The checkpoint that a run starts from: another trial's run, at one step."""

    trial: int
    run_name: str
    step: int


@dataclass(frozen=True)
class TrialSegment:
    """A part of one run."""

    trial: int
    repeat: int
    """Which of its runs."""
    values: Values
    """Its parameters."""
    run_name: str
    """Its run directory."""
    share: float
    """Share of the whole run at which the segment ends."""
    source: SourceTrial | None = None
    """The checkpoint to start from where the run has none of its own."""


@dataclass(frozen=True)
class SegmentResult:
    """What a segment measured, or why it failed."""

    step: int = 0
    """Steps done."""
    share: float = 0.0
    """Share of the run done."""
    measured: dict[str, float] | None = None
    """Metrics by name."""
    gpu_seconds: float = 0.0
    """Worker seconds spent."""
    failure: str | None = None
    """Why it failed; a failed trial gets no more workers."""
    outage: str | None = None
    """Why the storage did not answer. Nothing is wrong with the trial, and its segment is due again."""


class Engine:
    """Decides what runs next.

    Args:
        trials: The record.
        searcher: Suggests candidates.
        budget: The limits of the search.
        schedule: Successive halving, a population, or None: every trial trains to its end.
        clone: Copies the source checkpoint of a segment into its run, where the run has no checkpoint yet. It is called
            when members exchange and when the engine is built, so never while the source trial trains.
    """

    def __init__(
        self,
        trials: Trials,
        searcher: Searcher,
        budget: BudgetSpec,
        schedule: Halving | Population | None = None,
        clone: Callable[[TrialSegment], None] = lambda segment: None,
    ) -> None:
        self.trials = trials
        self._searcher = searcher
        self._budget = budget
        self._schedule = schedule
        self._clock = time.monotonic
        self._start = self._clock()
        self._running: set[tuple[int, int]] = set()
        self._exhausted = False
        self._failures = 0
        self._newest_failure = ""
        self._outages: Counter[tuple[int, int]] = Counter()
        self._newest_outage = ""
        self._clone = clone
        self._end_completed()
        self._clone_sources()

    def next_segment(self) -> TrialSegment | Pause:
        """Return the next segment; it counts as running until `complete` or `interrupt` is called with it.

        Raises:
            WorkError: The newest trials have all failed, so the next one would fail, too; or the storage is away.
        """
        self._check_failures()
        segment = None if self._is_budget_used_up() else self._choose()
        if segment is None:
            if self._running:
                return Pause.WAIT
            self._end_waiting()
            return Pause.DONE
        self._running.add((segment.trial, segment.repeat))
        return segment

    def complete(self, segment: TrialSegment, result: SegmentResult) -> None:
        """Record the result of a segment."""
        key = (segment.trial, segment.repeat)
        self._running.discard(key)
        if result.outage is not None:
            self._outages[key] += 1
            self._newest_outage = result.outage
            return
        del self._outages[key]
        if result.failure is not None:
            self._newest_failure = f"failed: {result.failure}"
            self._failures += not self.trials.trials[segment.trial].failed  # however many of its runs fail
            self.trials.end(segment.trial, self._newest_failure, result.gpu_seconds)
        else:
            self._failures = 0
            measured = dict(result.measured or {})
            measurement = Measurement(segment.repeat, result.share, result.step, measured, result.gpu_seconds)
            self.trials.measure(segment.trial, measurement)
        self._end_completed()

    def interrupt(self, segment: TrialSegment) -> None:
        """Take a segment back whose executor was lost; `next_segment` returns it again."""
        self._running.discard((segment.trial, segment.repeat))

    def _check_failures(self) -> None:
        if self._failures >= MOST_FAILURES:
            has_results = any(trial.measurements for trial in self.trials.trials.values())
            nothing = "" if has_results else " and none has given a result"
            raise WorkError(
                f"{self._failures} trials failed one after the other{nothing}; the last one {self._newest_failure}. "
                "Correct that and run the same command again: it resumes with new trials"
            )
        if max(self._outages.values(), default=0) >= MOST_OUTAGES:
            raise WorkError(
                f"the storage did not answer in {MOST_OUTAGES} attempts to train a trial: {self._newest_outage}. When "
                "it answers again, run the same command again: it resumes, and no trial has failed by this"
            )

    def _is_budget_used_up(self) -> bool:
        """Return whether the hours are used up; the number of trials is checked where a new one starts."""
        hours, limit = self.trials.gpu_seconds / 3600, self._budget.gpu_hours
        if limit is not None and hours >= limit:
            return True
        wall = self._budget.wall_hours
        return wall is not None and (self._clock() - self._start) / 3600 >= wall

    def _choose(self) -> TrialSegment | None:
        trials = list(self.trials.trials.values())
        # 1. Unfinished segments come first: after a restart these are the ones that were running.
        if (segment := self._first_unfinished(trials)) is not None:
            return segment
        # 2. A trial among the best of its rung trains on before a new one starts, the highest rung first.
        if isinstance(self._schedule, Halving):
            running = {number for number, repeat in self._running if repeat == 0}
            if (best := self._schedule.next_promotion(trials, running)) is not None:
                return self._segment_to_next_rung(best, self._schedule)
        if isinstance(self._schedule, Population):
            self._exchange(self._schedule)
            if (segment := self._first_unfinished(list(self.trials.trials.values()))) is not None:
                return segment
        # 3. A new candidate, while the budget and the space have one.
        if (new := self._new_trial()) is not None:
            return self._unfinished(new)
        # 4. Nothing is left to start: where no trial has reached its end, the best one does, so that there is a result.
        if not isinstance(self._schedule, Halving) or self._running:
            return None
        last = self._schedule.best_waiting(trials)
        return None if last is None else self._segment_to_next_rung(last, self._schedule)

    def _first_unfinished(self, trials: list[Trial]) -> TrialSegment | None:
        segments = (self._unfinished(trial) for trial in trials if trial.end is None)
        return next((segment for segment in segments if segment is not None), None)

    def _unfinished(self, trial: Trial) -> TrialSegment | None:
        """Return the segment that a trial may train without a promotion, where it has not been trained yet."""
        if isinstance(self._schedule, Halving):
            goal = self._schedule.share(trial, 0)
        elif isinstance(self._schedule, Population):
            goal = self._schedule.share(trial.passed + 1)
        else:
            goal = 1.0
        for repeat in range(self.trials.repeats):
            newest = trial.at(repeat)
            done = newest.share if newest is not None else 0.0
            if done < goal - 1e-9 and (trial.number, repeat) not in self._running:
                return self._segment(trial, repeat, goal)
        return None

    def _segment_to_next_rung(self, trial: Trial, schedule: Halving) -> TrialSegment:
        return self._segment(trial, 0, schedule.share(trial, schedule.rung(trial)))

    def _segment(self, trial: Trial, repeat: int, share: float) -> TrialSegment:
        source = None
        if trial.exchanges and isinstance(self._schedule, Population):
            last = trial.exchanges[-1]
            copied = self.trials.trials[last.source]
            # The copied run is the one of the moment of the exchange: runs that its trial began later do not count.
            before = [exchange.number for exchange in copied.exchanges if exchange.number < last.number]
            name = f"{copied.number:04d}" + (f"-exchange{before[-1]}" if before else "")
            measured = copied.at_share(self._schedule.share(last.number))
            source = SourceTrial(copied.number, name, measured.step if measured is not None else 0)
        return TrialSegment(trial.number, repeat, trial.values, trial.run_name(repeat), share, source)

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
        """Let the members exchange once all of them have trained to the same share."""
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
        self._clone_sources()

    def _clone_sources(self) -> None:
        """Give every changed member the checkpoint that it starts from."""
        for trial in self.trials.trials.values():
            if trial.exchanges and trial.end is None:
                segment = self._segment(trial, 0, 1.0)
                if segment.source is not None:
                    self._clone(segment)

    def _end_completed(self) -> None:
        """Record the end of trials of which all runs have trained to their end."""
        for trial in list(self.trials.trials.values()):
            newest = [trial.at(repeat) for repeat in range(self.trials.repeats)]
            if trial.end is None and all(entry is not None and entry.share >= 1 - 1e-9 for entry in newest):
                self.trials.end(trial.number, COMPLETED)

    def _end_waiting(self) -> None:
        """Record the end of trials that wait at a rung for a promotion that will not come.

        A used-up budget leaves them waiting: with a larger one they may still be promoted.
        """
        if self._is_budget_used_up() or not isinstance(self._schedule, Halving):
            return
        for trial in list(self.trials.trials.values()):
            if trial.end is None:
                rung = self._schedule.rung(trial)
                self.trials.end(trial.number, f"{STOPPED}: not among the best of rung {rung}")
