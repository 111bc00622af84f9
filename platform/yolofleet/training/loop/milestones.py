"""Which steps of a run are logged, evaluated and saved, and how many they are, counted without a walk over the steps.

The period of evaluations is a fraction, so an evaluation is due at the very step that completes its share of an epoch,
and the multiples of one period that meet the other are counted by Euclid's steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolofleet.specs.job import JobSpec


@dataclass(frozen=True)
class Milestones:
    """Which steps do more than train; a step is named by the number of steps done after it."""

    num_steps: int
    """Steps of the whole run."""
    log_every_steps: int
    """Steps between two rows of metrics."""
    checkpoint_every_steps: int
    """Steps between two checkpoints."""
    evaluation_every_steps: Fraction
    """Steps between two evaluations; need not be a whole number."""
    earlier_ends: frozenset[int] = frozenset()
    """Steps at which the run was over before its epochs were raised: they are evaluated, too."""

    @classmethod
    def of_job(cls, job: JobSpec, num_samples: int, earlier_ends: Iterable[int] = ()) -> Milestones:
        """Return the milestones of a job's run over a training set of so many samples."""
        return cls(
            num_steps=job.num_steps(num_samples),
            log_every_steps=job.log_every_steps,
            checkpoint_every_steps=job.checkpoint.period_steps,
            evaluation_every_steps=Fraction(str(job.evaluation.every_epochs)) * num_samples / job.global_batch_size,
            earlier_ends=frozenset(earlier_ends),
        )

    def logs(self, step: int) -> bool:
        """Return whether a row of metrics is due after ``step`` steps."""
        return step % self.log_every_steps == 0 or step == self.num_steps

    def evaluates(self, step: int) -> bool:
        """Return whether an evaluation is due after ``step`` steps."""
        is_end = step == self.num_steps or step in self.earlier_ends
        return is_end or self._periods(step) > self._periods(step - 1)

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is due: at its own period, and wherever the model is evaluated."""
        return step % self.checkpoint_every_steps == 0 or self.evaluates(step)

    def next_evaluation(self, step: int) -> int:
        """Return the first step at or after ``step``, one of the run's, after which an evaluation is due."""
        period = self.evaluation_every_steps
        due = max(step, -(-(self._periods(step - 1) + 1) * period.numerator // period.denominator))
        return min(end for end in (due, self.num_steps, *self.earlier_ends) if end >= step)

    def num_evaluations(self, after: int, until: int) -> int:
        """Return how many evaluations are due after more than ``after`` and at most ``until`` steps."""
        if self.evaluation_every_steps < 1:
            return until - after
        return self._periods(until) - self._periods(after) + len(self._ends_alone(after, until))

    def num_saves(self, after: int, until: int) -> int:
        """Return how many checkpoints are due after more than ``after`` and at most ``until`` steps."""
        if self.evaluation_every_steps < 1:
            return until - after
        every, period = self.checkpoint_every_steps, self.evaluation_every_steps
        first, count = after // every + 1, until // every - after // every
        slope = every * period.denominator
        both = _sum_of_floors(count, slope, first * slope, period.numerator)
        both -= _sum_of_floors(count, slope, first * slope - period.denominator, period.numerator)
        both += sum(end % every == 0 for end in self._ends_alone(after, until))
        return count + self.num_evaluations(after, until) - both

    def _periods(self, step: int) -> int:
        """Return the whole periods of evaluation in so many steps."""
        period = self.evaluation_every_steps
        return step * period.denominator // period.numerator

    def _ends_alone(self, after: int, until: int) -> list[int]:
        """Return the ends among these steps at which no period of evaluation ends."""
        ends = self.earlier_ends | {self.num_steps}
        return [end for end in ends if after < end <= until and self._periods(end) == self._periods(end - 1)]


def _sum_of_floors(count: int, slope: int, offset: int, divisor: int) -> int:
    """Return the sum of (slope * i + offset) // divisor over i from 0 to count - 1.

    It counts the lattice points below a line: whole parts of slope and offset are a triangle and a rectangle; what is
    left is counted along the other axis, where slope and divisor are exchanged, as in Euclid's algorithm.
    """
    total = count * (count - 1) // 2 * (slope // divisor) + count * (offset // divisor)
    slope, offset = slope % divisor, offset % divisor
    rows, rest = divmod(slope * count + offset, divisor)
    return total if rows == 0 else total + _sum_of_floors(rows, divisor, rest, slope)
