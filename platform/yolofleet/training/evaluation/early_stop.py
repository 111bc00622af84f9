"""The early end of a run: when its evaluations no longer get better, or its hours are spent (`stop` in the job).

Patience is decided by the evaluations in the run directory up to a step, and nothing else: however often the run was
started again, by however many workers, and whoever evaluated its checkpoints, it ends after the same evaluation. Where
they are evaluated beside the training, that may be known some steps later; what was trained after it is not released.

Hours are those of `yolofleet.tracking.goodput`: from each start to its end, or to the next start.

A run that has done its last step was not ended early, whatever its evaluations and its hours say.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from yolofleet.core.text import plural
from yolofleet.specs.job import JobSpec
from yolofleet.specs.stop import StopSpec
from yolofleet.storage import StorageError
from yolofleet.tracking.goodput import summarize_run
from yolofleet.tracking.json_lines import Row, seconds_of, utc_now
from yolofleet.tracking.run_directory import METRICS_LOGS, RunDirectory
from yolofleet.training.loop.schedule import EARLIER_EPOCHS
from yolofleet.training.loop.worker_group import WorkerGroup

EVENT = "ended_early"
logger = logging.getLogger(__name__)
Figures = Mapping[int, float | None]
"""The metric of each evaluation by its step; None where the validation set has no objects."""


@dataclass(frozen=True)
class EarlyEnd:
    """Why and where a run is over before its last step."""

    step: int
    """The last step that counts."""
    reason: str


def metric_of_rows(rows: Iterable[Row], metric: str) -> dict[int, float | None]:
    """Return a metric by step; of two evaluations after the same step the later one counts."""
    name = f"val_{metric}"
    return {int(row["step"]): row[name] for row in sorted(rows, key=lambda row: str(row["time"])) if name in row}


def out_of_patience(figures: Figures, stop: StopSpec, since_step: int = 0) -> EarlyEnd | None:
    """Return the first evaluation after which patience is over.

    Args:
        figures: The evaluations so far.
        stop: What the job asks for.
        since_step: Patience begins anew after this step, where epochs were raised; the best before it still counts.
    """
    if stop.patience is None:
        return None
    best, best_step, num_worse = -math.inf, 0, 0
    for step in sorted(figures):
        value = figures[step]
        if value is not None and (best == -math.inf or value > best + stop.min_delta):
            best, best_step, num_worse = value, step, 0
        elif step > since_step:
            num_worse += 1
            if num_worse >= stop.patience:
                margin = f" by more than {stop.min_delta:g}" if stop.min_delta else ""
                known = f"{best:.4f} of step {best_step}" if best_step else "nothing"
                evaluations = plural(num_worse, "evaluation")
                reason = f"{stop.metric} was not above {known}{margin} in {evaluations} (stop.patience)"
                return EarlyEnd(step, reason)
    return None


def patience_since(run: RunDirectory) -> int:
    """Return the step at which the epochs of the run were raised last; 0 where they never were."""
    return max((int(until_step) for _, until_step in run.facts().get(EARLIER_EPOCHS, [])), default=0)


def early_end(run: RunDirectory, stop: StopSpec | None, step: int, since_step: int | None = None) -> EarlyEnd | None:
    """Return why a run whose newest checkpoint is that of a step is over before its end; None where it is not.

    Args:
        run: The run directory.
        stop: What the job asks for.
        step: The step of the checkpoint.
        since_step: Patience begins anew after this step; None: as the run directory says.
    """
    if stop is None or step == 0:
        return None
    since_step = patience_since(run) if since_step is None else since_step
    if (end := out_of_patience(_figures_until(run, stop, step), stop, since_step)) is not None:
        return end
    is_spent = stop.max_hours is not None and _hours_spent(run) >= stop.max_hours
    return _out_of_hours(stop, step) if is_spent else None


def overrides_to_train_on(job: JobSpec, run: RunDirectory, step: int, num_steps: int) -> str:
    """Return the overrides with which a run that is over trains on.

    Args:
        job: What was trained.
        run: Its run directory.
        step: The step of its newest checkpoint.
        num_steps: Its steps.
    """
    overrides = [f"epochs={2 * job.epochs:g}"] if step >= num_steps else []  # patience begins anew with them
    stop = job.stop
    if stop is not None and stop.max_hours is not None and (spent := _hours_spent(run)) >= stop.max_hours:
        overrides.append(f"stop.max_hours={2 * spent:.4g}")
    if stop is not None and stop.patience is not None and step < num_steps:
        figures, since, enough = _figures_until(run, stop, step), patience_since(run), stop.patience
        while out_of_patience(figures, stop.model_copy(update={"patience": enough}), since) is not None:
            enough += 1
        if enough > stop.patience:
            overrides.append(f"stop.patience={2 * (enough - 1)}")
    return " ".join(overrides)


def _figures_until(run: RunDirectory, stop: StopSpec, step: int) -> Figures:
    return metric_of_rows((row for row in run.metrics() if int(row["step"]) <= step), stop.metric)


def _hours_spent(run: RunDirectory) -> float:
    return summarize_run(run.events(), run.metrics()).seconds_trained / 3600


def _out_of_hours(stop: StopSpec, step: int) -> EarlyEnd:
    spent = plural(stop.max_hours or 0, "hour of training is", "hours of training are", form="g")
    return EarlyEnd(step, f"{spent} spent (stop.max_hours)")


class EarlyStopping:
    """Tells all workers at once whether the run is over; a part of the loop.

    The first worker's clock decides about hours. What it says travels with the exchange of a step, and is read with the
    step's other values while the next one is computed: no step waits for it.

    Attributes:
        is_out_of_hours: Whether the hours are spent, as all workers have read after the same step.

    Args:
        stop: What the job asks for.
        run: The run directory, after the event of this start.
        group: This worker; the first one decides.
        clock: Seconds.
    """

    def __init__(
        self, stop: StopSpec, run: RunDirectory, group: WorkerGroup, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stop = stop
        self._run = run
        self._group = group
        self._clock = clock
        self._since = patience_since(run)
        self._reader = run.reader(*METRICS_LOGS)
        self._rows: list[Row] = []
        self._began = clock()
        self._seconds_before = 0.0
        self.is_out_of_hours = False
        if group.is_first and stop.max_hours is not None:
            events = [*run.events(), {"kind": "start", "time": utc_now()}]
            self._seconds_before = summarize_run(sorted(events, key=seconds_of), run.metrics()).seconds_trained

    def has_spent_hours(self) -> bool:
        """Return whether the hours are spent by the first worker's clock; False on the others."""
        if self._stop.max_hours is None or not self._group.is_first:
            return False
        return self._seconds_before + self._clock() - self._began >= self._stop.max_hours * 3600

    def observe(self, row: Row) -> None:
        """Take the row of an evaluation that this worker has just reported."""
        self._rows.append({"time": utc_now(), **row})

    def is_over(self, step: int) -> bool:
        """Return whether the run is over after so many steps; a collective.

        Where the storage does not answer, that is decided at the next checkpoint; the same evaluation ends the run.
        """
        is_over = False
        if self._group.is_first:
            try:
                is_over = self._find_end(step)
            except StorageError as error:
                logger.warning("whether the run ends early cannot be decided at step %d: %s", step, error)
        return bool(self._group.first_value(int(is_over)))

    def _find_end(self, step: int) -> bool:
        self._rows += self._reader.new_rows()
        counted = (row for row in self._rows if int(row["step"]) <= step)
        end = out_of_patience(metric_of_rows(counted, self._stop.metric), self._stop, self._since)
        if end is None and self.is_out_of_hours:
            end = _out_of_hours(self._stop, step)
        if end is not None:
            self._record(end)
        return end is not None

    def is_over_at_start(self, step: int) -> bool:
        """Return whether the run was over before this start, which stands at a step; a collective."""
        if step == 0:
            return False
        self.is_out_of_hours = bool(self._group.first_value(int(self.has_spent_hours())))
        return self.is_over(step)

    def _record(self, end: EarlyEnd) -> None:
        """Append the event of the end, once."""
        if not any(event.get("kind") == EVENT and event.get("step") == end.step for event in self._run.events()):
            self._run.append_event(EVENT, step=end.step, reason=end.reason)
