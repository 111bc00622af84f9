"""Daemon threads: a loop that repeats an action and warns once when it fails, a copy kept up to date, time limits."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.redaction import redact
from yolofleet.core.text import one_line

CLOSE_TIMEOUT_SECONDS = 10.0
POLL_SECONDS = 5.0
"""Pause between two passes of a copy."""
LONGEST_PAUSE_SECONDS = 60.0
"""The pause doubles up to this while the target of the copy does not answer."""
LAST_PASS_SECONDS = 30.0
"""How long `BackgroundSync.close` lets the last pass take."""
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


def ignore_event(kind: str, **fields: Any) -> None:
    """Do nothing with an event."""


class BackgroundSync:
    """Keeps MLflow synchronised with a directory in the background.

    Args:
        sync: Makes one pass, over everything or over what may have changed; raises where MLflow does not answer.
        source: The directory's URL.
        tracking_uri: The MLflow server or database.
        unaffected: What does not wait for MLflow: "training", "the search".
        poll_seconds: Pause between two passes.
        on_event: Takes the events ``tracking_away`` and ``tracking_back``.
        target: What is synchronised, for messages.
        cure: What sends the rest later.
    """

    def __init__(
        self,
        sync: Callable[[bool], object],
        *,
        source: str,
        tracking_uri: str,
        unaffected: str,
        poll_seconds: float = POLL_SECONDS,
        on_event: Callable[..., None] = ignore_event,
        target: str = "MLflow",
        cure: str = "`yolofleet report {source} --sync`",
    ) -> None:
        self._target = f"{target} at {redact(tracking_uri)}"
        self._cure = cure.format(source=source)
        self._sync = sync
        self._source = source
        self._uri = redact(tracking_uri)
        self._unaffected = unaffected
        self._poll_seconds = poll_seconds
        self._on_event = on_event
        self._failures = 0
        self._synchronised = False
        self._synchronised_at = time.monotonic()
        self._next_pass = 0.0
        self._one_pass_at_a_time = threading.Lock()
        self._loop = BackgroundLoop(
            self._pass_if_due,
            seconds=poll_seconds,
            name="mlflow-mirror",
            warning=f"{self._target} is not synchronised at the moment",
            at_once=True,
            close_timeout_seconds=0.0,  # `close` has a limit of its own
        )

    def start(self) -> None:
        """Start; returns at once, whether or not the server is there."""
        self._loop.start()

    def close(self, timeout_seconds: float = LAST_PASS_SECONDS) -> bool:
        """Make a last pass and end.

        Flush the directory first: only stored rows can be sent.

        Args:
            timeout_seconds: The longest that this call takes.

        Returns:
            Whether MLflow holds everything now. If not, nothing is lost: `yolofleet report --sync` sends the rest.
        """
        self._loop.close()
        self._synchronised = False
        try:
            within(timeout_seconds, lambda: self._pass(everything=True))
        except TimeoutError:
            self._synchronised = False
        if not self._synchronised:
            logger.warning("%s does not hold all of %s; send the rest with %s", self._target, self._source, self._cure)
        return self._synchronised

    def _pass_if_due(self) -> None:
        if time.monotonic() >= self._next_pass:
            self._pass(everything=False)
            longest = max(LONGEST_PAUSE_SECONDS, self._poll_seconds)
            self._next_pass = time.monotonic() + min(self._poll_seconds * 2**self._failures, longest)

    def _pass(self, *, everything: bool) -> None:
        with self._one_pass_at_a_time:
            self._make_pass(everything)

    def _make_pass(self, everything: bool) -> None:
        self._synchronised = False
        try:
            self._sync(everything)
        except Exception as error:  # MLflow, requests, database drivers, storage: all mean "try again later"
            self._failures += 1
            if self._failures == 1:
                reason = one_line(error)
                logger.warning("%s is behind, %s continues: %s", self._target, self._unaffected, reason)
                self._append_event("tracking_away", uri=self._uri, reason=reason)
            return
        if self._failures:
            logger.info("%s has caught up", self._target)
            seconds = round(time.monotonic() - self._synchronised_at, 3)
            self._append_event("tracking_back", uri=self._uri, seconds=seconds)
        self._failures, self._synchronised_at, self._synchronised = 0, time.monotonic(), True

    def _append_event(self, kind: str, **fields: Any) -> None:
        try:
            self._on_event(kind, **fields)
        except (UserError, WorkError) as error:  # the storage is away, too, or another process has taken the run over
            logger.warning("the event %s of %s could not be recorded: %s", kind, self._source, error)
