"""The pulse of one worker's training: how far it is and when it last moved, for threads that watch over it.

The loop beats at every micro-batch and every step; nothing else does, so a worker whose process lives but whose
training stands still (a stuck read, a stuck collective, a stopped process) has a pulse that grows old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from yolofleet.errors import WorkError


@dataclass(frozen=True)
class Reached:
    """How far a run had come.

    Attributes:
        step: Steps done.
        at: When that was known, in seconds since 1970.
    """

    step: int
    at: float


PAUSED = "it has come as far as it was asked to"
"""Why a worker leaves after its ``leave_after_step``."""


class StoppedError(WorkError):
    """The run was told to stop before its end (SIGTERM, say); its state was saved as far as there was time for it."""


class Pulse:
    """Written by the loop, read by other threads; also carries what the loop is asked to do.

    Attributes:
        step: Steps done.
        leave_reason: Why the worker should save its state and end after the step that it is in; None: train on.
        reached: How far the run was known to have come before this worker started, None where nobody knows.
        leave_after_step: The step after which the worker is to leave by itself; None: at the end of the run.
        figures: The newest value of everything that was reported; the first worker's only.
    """

    def __init__(
        self,
        reached: Reached | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        leave_after_step: int | None = None,
    ) -> None:
        self.step = 0
        self.leave_after_step = leave_after_step
        self.leave_reason: str | None = None
        self.reached = reached
        self.figures: dict[str, Any] = {}
        self._clock = clock
        self._last_beat: float | None = None

    def beat(self, step: int) -> None:
        """Note that training moves."""
        self.step = step
        self._last_beat = self._clock()
        if self.leave_after_step is not None and step >= self.leave_after_step:
            self.ask_to_leave(PAUSED)

    def tell(self, row: Mapping[str, Any]) -> None:
        """Note a row of metrics, for those who watch: a new mapping each time, as another thread may be reading."""
        self.figures = {**self.figures, **row}

    def rest(self) -> None:
        """Note that training has ended or not begun: standing still means nothing."""
        self._last_beat = None

    def silence_seconds(self) -> float:
        """Return for how long nothing has moved; 0 before the first beat."""
        return 0.0 if self._last_beat is None else self._clock() - self._last_beat

    def ask_to_leave(self, reason: str) -> None:
        """Ask the loop to take a checkpoint after the step that it is in, and end. The first reason counts."""
        self.leave_reason = self.leave_reason or reason
