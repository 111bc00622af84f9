"""What a storage's users waited for: faults that passed, counted so that somebody can tell of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST_OFTEN_SECONDS = 10.0
"""An endpoint that refuses every tenth call makes an account this often, not one a call."""


@dataclass(frozen=True)
class Outage:
    """Faults that are over.

    Attributes:
        seconds: From the first fault to the first answer after it; several outages are added up.
        tries: Calls that failed meanwhile.
        reason: The newest of the faults.
    """

    seconds: float
    tries: int
    reason: str


class Outages:
    """Collects what passed until somebody takes the account; safe among threads.

    Args:
        clock: Seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._seconds = 0.0
        self._tries = 0
        self._reason = ""
        self._taken_at: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()  # a storage goes to other processes with its dataset

    def note_fault(self, reason: str) -> None:
        """Note that a call failed in a way that passes."""
        with self._lock:
            self._began = self._clock() if self._began is None else self._began
            self._tries += 1
            self._reason = reason

    def note_answer(self) -> None:
        """Note that a call was answered."""
        if self._began is None:  # the ordinary case, without the lock
            return
        with self._lock:
            if self._began is not None:
                self._seconds += self._clock() - self._began
                self._began = None

    def take(self) -> Outage | None:
        """Return what has passed since the last account; None while there is nothing to tell, or it goes on."""
        if not self._tries:
            return None
        with self._lock:
            now = self._clock()
            too_soon = self._taken_at is not None and now - self._taken_at < MOST_OFTEN_SECONDS
            if not self._tries or self._began is not None or too_soon:
                return None
            found = Outage(round(self._seconds, 3), self._tries, self._reason)
            self._seconds, self._tries, self._taken_at = 0.0, 0, now
            return found
