"""What a restart cost: the steps that are done again, and the time until the run is as far as it was."""

from __future__ import annotations

import time
from collections.abc import Callable

from yolofleet.tracking.json_lines import seconds_of
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.worker_group import Reached, WorkerGroup

WILFUL_ENDS = ("stopped", "left", "end", "failed")
"""Events after which nobody waits for the run: the time until its next start is not lost."""


class Setback:
    """Notes in the run's events when a run is again as far as it had been.

    How far it had been is what the driver last heard from the workers, and else the newest row of metrics, so that
    without Ray it is known to ``log_every_steps`` only.

    Args:
        run: The run directory, before its rows of later steps are removed.
        step: Where the run goes on.
        group: This worker's place.
        clock: Seconds since 1970.
    """

    def __init__(
        self, run: RunDirectory, step: int, group: WorkerGroup, clock: Callable[[], float] = time.time
    ) -> None:
        self._run = run
        self._clock = clock
        self._start_step = step
        self._first_step_seconds: float | None = None
        self._began = clock()
        known = [found for found in (group.pulse.reached, _newest_row(run)) if found is not None]
        self._before = max(known, key=lambda found: found.step, default=None)
        if self._before is not None and _ended_wilfully(run):
            self._before = Reached(self._before.step, self._began)

    def begin(self) -> None:
        """Note that all is prepared: the first step begins."""
        self._began = self._clock()

    def observe(self, step: int) -> None:
        """Note that ``step`` steps are done now; the first time that is as far as before, say what it cost."""
        if self._before is None:
            return
        if self._first_step_seconds is None:
            self._first_step_seconds = round(self._clock() - self._began, 3)
        if step <= self._before.step:
            return
        self._run.append_event(
            "regained",
            step=step,
            steps_redone=max(0, self._before.step - self._start_step),
            seconds_lost=round(max(0.0, self._clock() - self._before.at), 3),
            first_step_seconds=self._first_step_seconds,
            seconds_since_start=round(self._clock() - self._began, 3),
        )
        self._before = None


def _newest_row(run: RunDirectory) -> Reached | None:
    rows = run.metrics()
    if not rows:
        return None
    row = max(rows, key=lambda row: int(row.get("step", 0)))
    return Reached(int(row.get("step", 0)), seconds_of(row))


def _ended_wilfully(run: RunDirectory) -> bool:
    kinds = [str(event.get("kind")) for event in run.events()]
    last = next((kind for kind in reversed(kinds) if kind in ("start", *WILFUL_ENDS)), None)
    return last in WILFUL_ENDS
