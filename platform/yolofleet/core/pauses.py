"""How often to look for what others change: the less often, the longer nothing has changed.

On an object store every look is a request. A pause is a quarter of the time without a change, so whoever looks sees a
change late by a quarter of the time since the last one at most, and what has long been quiet costs nearly nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

QUIET_SHARE = 0.25
LONGEST_PAUSE_SECONDS = 60.0


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
        self._next_look = now + min((now - self._changed_at) * QUIET_SHARE, LONGEST_PAUSE_SECONDS)
