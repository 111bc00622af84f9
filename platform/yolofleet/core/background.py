"""Daemon threads: a loop that repeats an action and warns once when it fails, and calls with a time limit."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

CLOSE_TIMEOUT_SECONDS = 10.0
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class BackgroundLoop:
    """Repeats an action in a daemon thread, for the length of a with block or from `start` to `close`.

    A failure never ends the loop: the first one of a row is logged as a warning, and the action is tried again at the
    next turn. `EndLoop` raised by the action ends it.

    Args:
        action: What to repeat.
        seconds: Pause between two calls.
        name: Name of the thread.
        warning: What a failure means, in words that come before the error: "metrics cannot be published".
        at_once: Whether the first call comes before the first pause.
        close_timeout_seconds: How long `close` waits for a call that is under way.
    """

    def __init__(
        self,
        action: Callable[[], object],
        *,
        seconds: float,
        name: str,
        warning: str,
        at_once: bool = False,
        close_timeout_seconds: float = CLOSE_TIMEOUT_SECONDS,
    ) -> None:
        self._action = action
        self._seconds = seconds
        self._warning = warning
        self._at_once = at_once
        self._close_timeout_seconds = close_timeout_seconds
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the loop; returns when the thread has ended, or after the time-out where a call hangs."""
        self._closing.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=self._close_timeout_seconds)

    def __enter__(self) -> BackgroundLoop:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _repeat(self) -> None:
        failing = False
        pause = 0.0 if self._at_once else self._seconds
        while not self._closing.wait(pause):
            pause = self._seconds
            try:
                self._action()
                failing = False
            except EndLoop:
                return
            except Exception as error:
                if not failing:
                    logger.warning("%s: %s", self._warning, error)
                failing = True


class EndLoop(Exception):  # noqa: N818 - a signal, not an error
    """Raised by the action of a `BackgroundLoop` to end it."""


def within(timeout_seconds: float, action: Callable[[], Result]) -> Result:
    """Return what ``action`` returns or raises; one that hangs is left behind in its thread.

    Raises:
        TimeoutError: The action did not end in time.
    """
    results: list[Result] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(action())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="within", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError
    return results[0]


def gather(
    actions: Sequence[Callable[[], Result]], *, deadline_seconds: float, at_a_time: int = 8
) -> list[Result | Exception | None]:
    """Return what each action returns or raises; None for those that did not end by the deadline, which are left.

    Args:
        actions: What to call, in the order in which they begin.
        deadline_seconds: Time for all of them together; infinite: as long as it takes.
        at_a_time: Threads.
    """
    results: list[Result | Exception | None] = [None] * len(actions)
    waiting = deque(range(len(actions)))
    end = time.monotonic() + deadline_seconds

    def work() -> None:
        while waiting and time.monotonic() < end:
            try:
                index = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                results[index] = actions[index]()
            except Exception as error:
                results[index] = error

    threads = [threading.Thread(target=work, name="gather", daemon=True) for _ in range(min(at_a_time, len(actions)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(None if end == math.inf else max(0.0, end - time.monotonic()))
    return [*results]
