"""Pauses that grow: between the attempts of an action that fails, and between looks at what others change.

An action is tried again until it succeeds or its patience is over. Who looks for a change looks the less often, the
longer there was none: on an object store every look is a request. A pause is a quarter of the time without a change, so
a change is seen late by a quarter of the time since the last one at most, and what is quiet costs nearly nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
JITTER = 0.2
"""Pauses vary by this share, so that many clients of a server that comes back do not all call at once."""
QUIET_SHARE = 0.25
LONGEST_QUIET_PAUSE_SECONDS = 60.0

Result = TypeVar("Result")


def retry(
    action: Callable[[], Result],
    *,
    patience_seconds: float,
    is_transient: Callable[[Exception], bool],
    on_retry: Callable[[Exception, float], None] | None = None,
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
    is_from_first_failure: bool = False,
) -> Result:
    """Call an action until it succeeds; returns what it returns.

    The pause doubles from 0.2 s. No attempt starts after the deadline, so the call ends after the patience and the
    time of one attempt at most.

    Args:
        action: What to do; called again after a transient failure.
        patience_seconds: Time from the first call in which attempts may start. 0: one attempt.
        is_transient: Whether a failure may pass by itself; all others are raised at once.
        on_retry: Called before each pause with the failure and the length of the pause, to log or count it.
        longest_pause_seconds: Where the pauses stop growing.
        is_from_first_failure: Count the patience from the first failure on, where an attempt may take longer than that.

    Raises:
        Exception: The failure of the last attempt, unchanged.
    """
    deadline = time.monotonic() + patience_seconds
    pause_seconds = FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except Exception as error:
            if is_from_first_failure:
                deadline, is_from_first_failure = time.monotonic() + patience_seconds, False
            if not is_transient(error) or time.monotonic() + pause_seconds > deadline:
                raise
            if on_retry is not None:
                on_retry(error, pause_seconds)
        time.sleep(pause_seconds * random.uniform(1 - JITTER, 1 + JITTER))
        pause_seconds = min(2 * pause_seconds, longest_pause_seconds)


class GrowingPause:
    """The pauses between looks at one thing.

    Args:
        clock: Seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed_at = self._next_look = clock()

    def is_over(self) -> bool:
        """Return whether it is time for another look."""
        return self._clock() >= self._next_look

    def begin(self, *, changed: bool) -> None:
        """Begin the pause after a look, which did or did not find a change."""
        now = self._clock()
        if changed:
            self._changed_at = now
        self._next_look = now + min((now - self._changed_at) * QUIET_SHARE, LONGEST_QUIET_PAUSE_SECONDS)
