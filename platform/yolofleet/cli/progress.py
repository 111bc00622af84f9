"""Watching a run from outside: a progress bar where there is a terminal, plain lines where there is none.

The run directory is all that is looked at, so it works the same for a run of this process, of Ray, or of another host.

Progress of work that is counted: a bar on a terminal, a plain line every ten seconds elsewhere.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from yolofleet.tracking.run_directory import RunDirectory
from collections.abc import Callable

POLL_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0


class Display(Protocol):
    """Shows rows of metrics."""

    def show(self, row: dict[str, Any]) -> None:
        """Show one row."""

    def close(self) -> None:
        """Leave the terminal as it was."""


@contextmanager
def following(run: RunDirectory, num_steps: int, done_steps: int) -> Iterator[None]:
    """Show the run's new rows on stderr for the length of a with block."""
    _, cursors = run.new_metrics({})
    news = _News(run)
    display: Display = _Bar(num_steps, done_steps) if sys.stderr.isatty() else _Lines(num_steps)
    ended = threading.Event()

    def watch() -> None:
        nonlocal cursors
        while True:
            last = ended.wait(POLL_SECONDS)
            try:
                rows, cursors = run.new_metrics(cursors)
                rows += news.take()
            except Exception as error:  # the display must never end a run
                display.show({"problem": f"the run directory cannot be read: {error}"})
                rows = []
            for row in filter(is_news, rows):
                display.show(row)
            if last:
                return

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(timeout=10)
        display.close()


class _News:
    """Events of the run that a watcher should know of."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._seen = {_identity(event) for event in run.events()}
        self._size_bytes = run.events_size_bytes()
        self._started = False

    def take(self) -> list[dict[str, Any]]:
        """Return what happened since the last call, as rows with a ``problem``."""
        size_bytes = self._run.events_size_bytes()
        if size_bytes == self._size_bytes:
            return []
        self._size_bytes = size_bytes
        # Each source's log arrives when it can, so new events need not be the last ones.
        events = [event for event in self._run.events() if _identity(event) not in self._seen]
        self._seen.update(map(_identity, events))
        return [{"problem": text} for event in events if (text := self._told(event)) is not None]

    def _told(self, event: dict[str, Any]) -> str | None:
        from yolofleet.tracking.goodput import format_event

        kind = event.get("kind")
        if kind == "start":
            started_before, self._started = self._started, True
            where = f"step {event.get('step')} with {event.get('workers')} workers"
            return f"the workers started again from {where}" if started_before else None
        if kind not in ("stopped", "failed") and (line := format_event(event)) is not None:
            return line.partition(" ")[2]
        if kind == "non_finite":
            row_of = f", {event.get('in_a_row')} in a row" if event.get("in_a_row", 0) > 1 else ""
            return f"step {event.get('step')} was skipped: its loss or gradient is non-finite{row_of}"
        return None


def _identity(event: dict[str, Any]) -> str:
    return json.dumps(event, sort_keys=True)


def is_news(row: dict[str, Any]) -> bool:
    """Tell whether a row is for the display: a step, an evaluation or a problem, not counts alone (skipped samples)."""
    return not row.keys().isdisjoint(("loss", "val_AP", "problem", "non_finite_steps"))


def described(row: dict[str, Any]) -> str:
    """Return a row of metrics as one short line."""
    if "problem" in row:
        return str(row["problem"])
    if "val_AP" in row:
        ap50, ap = (row.get(name) for name in ("val_AP50", "val_AP"))
        return f"step {row['step']}: validation AP50 {_figure(ap50)}, AP {_figure(ap)}"
    skipped = f", {row['non_finite_steps']} steps skipped" if row.get("non_finite_steps") else ""
    return (
        f"loss {row.get('loss', float('nan')):.4f} (box {row.get('loss_box', 0):.4f}, "
        f"objectness {row.get('loss_objectness', 0):.4f}, class {row.get('loss_classification', 0):.4f}), "
        f"learning rate {row.get('learning_rate', 0):.2e}, {row.get('samples_per_second', 0):.1f} images/s{skipped}"
    )


def _figure(value: Any) -> str:
    return "none" if value is None else f"{value:.4f}"


class _Lines:
    """Plain lines, a few a minute."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._next = 0.0
        self._first: tuple[int, float] | None = None

    def show(self, row: dict[str, Any]) -> None:
        judged = "val_AP" in row or "problem" in row
        if "problem" in row:
            self._first = None  # what it cost is no measure of the time that is left
        if not judged and time.monotonic() < self._next and row["step"] < self._num_steps:
            return
        prefix = "" if judged else f"step {row['step']}/{self._num_steps}{self._remaining(row['step'])}: "
        print(f"{prefix}{described(row)}", file=sys.stderr, flush=True)
        if not judged:
            self._next = time.monotonic() + PLAIN_LINE_SECONDS

    def _remaining(self, step: int) -> str:
        """Return the time left at the pace since the first row."""
        now = time.monotonic()
        if self._first is None or step <= self._first[0]:
            self._first = self._first or (step, now)
            return ""
        seconds = (now - self._first[1]) / (step - self._first[0]) * (self._num_steps - step)
        return f" ({seconds / 60:.0f} min left)" if seconds >= 90 else f" ({seconds:.0f} s left)"

    def close(self) -> None:
        """Nothing to put back."""


class _Bar:
    """A progress bar with rate, losses, learning rate and the time left."""

    def __init__(self, num_steps: int, done_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
        )
        self._task = self._progress.add_task("starting workers", total=num_steps, completed=done_steps)
        self._progress.start()

    def show(self, row: dict[str, Any]) -> None:
        if "val_AP" in row or "problem" in row:
            self._console.print(described(row))
            return
        self._progress.update(self._task, completed=row["step"], description=described(row))

    def close(self) -> None:
        """Stop redrawing."""
        self._progress.stop()


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
