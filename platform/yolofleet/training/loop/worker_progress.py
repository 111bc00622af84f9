"""How far a worker is, and what it is asked to do: written by its loop, read by other threads. It needs no torch.

Only the loop updates a worker's progress, at every micro-batch and every step. So a worker whose process lives but
whose training hangs (a stuck read, a stuck collective, a stopped process) is known by its growing silence.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from yolofleet.core.errors import WorkError
from yolofleet.tracking.goodput import PAUSED
from yolofleet.tracking.json_lines import OnRow, Row


@dataclass(frozen=True)
class KnownProgress:
    """How far a run was known to have come."""

    step: int
    """Steps done."""
    at: float
    """When that was known, in seconds since 1970."""


def furthest(*known: KnownProgress | None) -> KnownProgress | None:
    """Return the progress of most steps, of equal ones the earliest; None where nothing is known."""
    there = (entry for entry in known if entry is not None)
    return max(there, key=lambda entry: (entry.step, -entry.at), default=None)


MOST_UNSENT = 1000
DRIVER_NODE_ENDS = "the node of this command is about to be taken away"
"""Why a run ends that nobody asked to stop."""


class StoppedError(WorkError):
    """The run was asked to stop before its end (by SIGTERM, say); its state was saved as far as there was time."""

    is_wilful = True
    """Whether somebody wanted it; if not, the time until the run resumes is lost."""


class WorkerProgress:
    """How far one worker is: written by its loop, read by other threads; it also carries requests to the loop.

    Attributes:
        step: Steps done.
        leave_reason: Why the worker should save its state and end after the current step; None: train on.
        group_leaves: Whether any worker of the group was asked to, as all learn by the exchange of a step.
        known: How far the run was known to have come before this worker started; None: not known.
        leave_after_step: The step after which the worker leaves by itself; None: at the end of the run.
        metrics: The newest value of each metric that was reported; the first worker's only.
        unsent: The newest rows and events that wait for the next heartbeat, where ``on_row`` is not given.
    """

    def __init__(
        self, known: KnownProgress | None = None, *, leave_after_step: int | None = None, on_row: OnRow | None = None
    ) -> None:
        self.step = 0
        self.leave_after_step = leave_after_step
        self.leave_reason: str | None = None
        self.group_leaves = False
        self.known = known
        self.metrics: dict[str, Any] = {}
        self.unsent: deque[Row] = deque(maxlen=MOST_UNSENT)
        self._on_row = on_row or self.unsent.append
        self._advanced_at: float | None = None

    def advance(self, step: int) -> None:
        """Record that training makes progress, and that ``step`` steps are done."""
        self.step = step
        self._advanced_at = time.monotonic()
        if self.is_past_last_step:
            self.ask_to_leave(PAUSED)

    @property
    def is_past_last_step(self) -> bool:
        """Whether the worker leaves by itself now, as every other does."""
        return self.leave_after_step is not None and self.step >= self.leave_after_step

    def report(self, row: Row) -> None:
        """Record a row of metrics or an event."""
        if "kind" not in row:
            self.metrics = {**self.metrics, **row}  # another thread may be reading the old one
        self._on_row(row)

    def stop(self) -> None:
        """Record that training is over: from now on silence means nothing."""
        self._advanced_at = None

    def silence_seconds(self) -> float:
        """Return the time since the last progress; 0 before the first."""
        return 0.0 if self._advanced_at is None else time.monotonic() - self._advanced_at

    def ask_to_leave(self, reason: str) -> None:
        """Ask the loop to take a checkpoint after the current step, and to end. The first reason counts."""
        self.leave_reason = self.leave_reason or reason
