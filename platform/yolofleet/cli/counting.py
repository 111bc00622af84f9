"""Progress of work that is counted: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_LINE_SECONDS = 10.0


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr for the length of a with block; gives the function that is told what was done."""
    if not sys.stderr.isatty():
        yield _PlainProgress(what, total).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


class _PlainProgress:
    """Progress as lines of text; safe among threads."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._last_seconds = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        """Note that so many more are done."""
        with self._lock:
            self._done += count
            if time.monotonic() - self._last_seconds >= PLAIN_LINE_SECONDS:
                self._last_seconds = time.monotonic()
                print(f"{self._what}: {self._done:,} of {self._total:,}", file=sys.stderr, flush=True)
