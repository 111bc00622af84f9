"""The fetchers of a process: threads that fetch what will be needed, and help with what is needed now.

There are as many as its share of its node's, and as many as bring bandwidth.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

from yolofleet.core.errors import UserError
from yolofleet.data.download import Download

FIRST_FETCHERS = 4
MOST_FETCHERS = 32
"""Of a node whose number is found by measuring."""
STEP = 1.5
LEAST_GAIN = 1.1
"""So many times the bandwidth must more fetchers bring to stay; they are 1.25 to 2 times as many."""
NUM_RESTS = 10
"""Measurements between a step that brought nothing and the next one."""
MEASURED_SECONDS = 2.0
logger = logging.getLogger(__name__)


class Outcome(Enum):
    """How an attempt to fetch something ahead ended."""

    DONE = auto()
    BUSY = auto()
    """Another thread or process fetches it."""
    FULL = auto()
    """There is no room for it, nor for anything else."""
    FAILED = auto()
    """It may succeed later."""


PAUSE_SECONDS = {Outcome.BUSY: 1.0, Outcome.FULL: 1.0, Outcome.FAILED: 10.0}
"""Until the next attempt."""


@dataclass
class _Task:
    run: Callable[[], Outcome]
    not_before: float
    """Time of the next attempt; infinite while there is one."""


class Fetchers:
    """Daemon threads that work at tasks in the order in which their results are needed.

    Nothing depends on them: whoever needs something that they could not fetch fetches it, and meets the error.

    Args:
        count: How many there are; it is given the bandwidth whenever all of them were busy.
    """

    def __init__(self, count: FetcherCount) -> None:
        self._count = count
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._tasks: dict[str, _Task] = {}
        self._running: set[str] = set()
        self._downloads: list[Download] = []
        self._is_closed = False
        self._num_idle = 0
        self._measured_from: float | None = None
        self._measured_bytes = 0

    def ask(self, tasks: Mapping[str, Callable[[], Outcome]]) -> None:
        """Ask for tasks, the first first; those of earlier calls that are not named again are dropped."""
        with self._changed:
            self._tasks = {name: _Task(run, math.inf if name in self._running else 0.0) for name, run in tasks.items()}
            self._wake()

    def close(self) -> None:
        """End the threads as soon as they are done with what they have begun."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @contextmanager
    def helping(self, download: Download, *, is_urgent: bool) -> Iterator[None]:
        """Let fetchers help with a download: before all others where it is urgent, else after those before it."""
        with self._changed:
            self._downloads.insert(0 if is_urgent else len(self._downloads), download)
            if download.has_rest:
                self._wake()
        try:
            yield
        finally:
            with self._changed:
                self._downloads.remove(download)

    def help(self) -> None:
        """Fetch a range of the first download that has one left."""
        with self._changed:
            download = next((download for download in self._downloads if download.has_rest), None)
        if download is not None:
            download.fetch_range()

    def note_bytes(self, num_bytes: int) -> None:
        """Count bytes that came."""
        with self._changed:
            self._measured_bytes += num_bytes

    def _wake(self) -> None:
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        while not self._is_closed and len(self._threads) < self._count.value:
            thread = threading.Thread(target=self._work, name="fetcher", daemon=True)
            self._threads.add(thread)
            thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while (action := self._next_action()) is not None:
            action()

    def _next_action(self) -> Callable[[], None] | None:
        """Return what to do next, as soon as there is something; None where this fetcher is one too many."""
        with self._changed:
            while not self._is_closed and len(self._threads) <= self._count.value:
                if any(download.has_rest for download in self._downloads):
                    self._measure()
                    return self.help
                now = time.monotonic()
                for name, task in self._tasks.items():
                    if task.not_before <= now:
                        self._measure()
                        self._running.add(name)
                        task.not_before = math.inf
                        return partial(self._attempt, name, task.run)
                self._measured_from = None  # not all have something to do: more of them would not help
                self._num_idle += 1
                times = [task.not_before for task in self._tasks.values() if task.not_before < math.inf]
                self._changed.wait(min(times) - now if times else None)
                self._num_idle -= 1
            self._threads.discard(threading.current_thread())
        return None

    def _attempt(self, name: str, run: Callable[[], Outcome]) -> None:
        outcome = Outcome.FAILED
        try:
            outcome = run()
        except UserError as error:
            logger.warning("fetching ahead failed: %s", error)
            outcome = Outcome.DONE  # for the one who needs it
        finally:
            with self._changed:
                self._running.discard(name)
                if name in self._tasks:
                    if outcome is Outcome.DONE:
                        del self._tasks[name]
                    for other, task in self._tasks.items():
                        if other == name or (outcome is Outcome.FULL and task.not_before < math.inf):
                            pause = PAUSE_SECONDS[outcome] * (1 if other == name else 2)  # one attempt shows for all
                            task.not_before = time.monotonic() + pause

    def _measure(self) -> None:
        """Give the count the bandwidth, if all fetchers were busy for long enough."""
        now = time.monotonic()
        if self._num_idle:
            return
        if self._measured_from is None:
            self._measured_from, self._measured_bytes = now, 0
        elif now - self._measured_from >= MEASURED_SECONDS:
            self._count.observe(self._measured_bytes / (now - self._measured_from))
            self._measured_from, self._measured_bytes = now, 0
            self._wake()


class FetcherCount:
    """A number of fetchers that follows the bandwidth: it goes up by steps, and back when a step brought too little.

    Args:
        first: Where it begins, and what it never goes below.
        most: What it never goes above.
    """

    def __init__(self, first: int, most: int) -> None:
        self.value = first
        self._most = most
        self._before: tuple[int, float] | None = None  # number and bandwidth before the newest step
        self._num_rests = 0

    @staticmethod
    def of_process(fetchers: int | None) -> FetcherCount:
        """Return the number for this process.

        Args:
            fetchers: Those of the node; None finds their number.
        """
        if fetchers is None:
            return FetcherCount(process_share(FIRST_FETCHERS), process_share(MOST_FETCHERS))
        return FetcherCount(process_share(fetchers), process_share(fetchers))

    def observe(self, bytes_per_second: float) -> None:
        """Take a measurement during which all fetchers had something to do."""
        if self._before is not None and bytes_per_second < LEAST_GAIN * self._before[1]:
            self.value, self._num_rests = self._before[0], NUM_RESTS
            self._before = None
        elif self._num_rests:
            self._num_rests -= 1
        else:
            self._before = (self.value, bytes_per_second) if self.value < self._most else None
            self.value = min(self._most, math.ceil(STEP * self.value))


def process_share(fetchers: int) -> int:
    """Return this process's share of its node's fetchers, at least one.

    torchrun and Ray Train say how many workers the node has; a process of neither is its only one.
    """
    num_workers = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    number = int(os.environ.get("LOCAL_RANK", "0"))
    return max(1, (fetchers + num_workers - 1 - number) // num_workers)
