"""Progress on stderr: a bar where there is a terminal, a plain line every ten seconds elsewhere.

`show_progress` counts the work of this process. `watch_run` reads nothing but a run directory, so it shows a run of
this process, of Ray, or of another host in the same way.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from yolofleet.core.background import BackgroundLoop
from yolofleet.core.redaction import redact
from yolofleet.core.terminal import is_terminal, note, printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from yolofleet.tracking.run_directory import RunDirectory

POLL_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0


@contextmanager
def show_progress(activity: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show how much of a work is done for the length of a with block; yields the function that adds to it.

    Args:
        activity: What is done: "sharding".
        total: How much there is to do; None where that is not known.
    """
    if not is_terminal():
        yield _PlainProgress(activity, total).advance
        return
    with _progress_bar() as bar:
        task = bar.add_task(activity, total=total)
        yield lambda count: bar.advance(task, count)


def _progress_bar(*columns: Any) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    first = columns or (TextColumn("{task.description}"),)
    bar = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(first[0], *bar, *first[1:], console=Console(stderr=True))


class _PlainProgress:
    """Progress as lines of text; several threads may add to it."""

    def __init__(self, activity: str, total: int | None) -> None:
        self._activity = activity
        self._of_total = "" if total is None else f" of {total:,}"
        self._done = 0
        self._last_seconds = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() - self._last_seconds >= PLAIN_LINE_SECONDS:
                self._last_seconds = time.monotonic()
                note(f"{self._activity}: {self._done:,}{self._of_total}")


@contextmanager
def watch_run(run: RunDirectory, num_steps: int, done_steps: int) -> Iterator[None]:
    """Show the run's new rows and events on stderr for the length of a with block."""
    _, cursors = run.new_metrics({})
    events = _NewEvents(run)
    display: _Bar | _Lines = _Bar(num_steps, done_steps) if is_terminal() else _Lines(num_steps)

    def poll() -> None:
        nonlocal cursors
        try:
            rows, cursors = run.new_metrics(cursors)
            rows += events.rows()
        except Exception as error:  # the display must never end a run
            rows = [{"problem": f"the run directory cannot be read: {error}"}]
        for row in filter(is_shown, rows):
            display.show(row)

    try:
        with BackgroundLoop(
            poll, seconds=POLL_SECONDS, name="progress", warning="the progress cannot be shown", at_once=True
        ):
            yield
    finally:
        poll()
        display.close()


class _NewEvents:
    """The events that a run gets while it is watched."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._seen = {_identity(event) for event in run.events()}
        self._size_bytes = run.events_size_bytes()
        self._started = False

    def rows(self) -> list[dict[str, Any]]:
        """Return the events since the last call that a user should know of, as rows with a ``problem``."""
        size_bytes = self._run.events_size_bytes()
        if size_bytes == self._size_bytes:
            return []
        self._size_bytes = size_bytes
        # Each source's log arrives when it can, so new events need not be the last ones.
        events = [event for event in self._run.events() if _identity(event) not in self._seen]
        self._seen.update(map(_identity, events))
        return [{"problem": text} for event in events if (text := self._format(event)) is not None]

    def _format(self, event: dict[str, Any]) -> str | None:
        from yolofleet.tracking.goodput import format_event

        kind = event.get("kind")
        if kind == "start":
            started_before, self._started = self._started, True
            position = f"step {event.get('step')} with {event.get('workers')} workers"
            return f"the workers started again from {position}" if started_before else None
        if kind not in ("stopped", "failed") and (line := format_event(event)) is not None:
            return line.partition(" ")[2]
        if kind == "non_finite":
            in_a_row = f", {event.get('in_a_row')} in a row" if event.get("in_a_row", 0) > 1 else ""
            return f"step {event.get('step')} was skipped: its loss or gradient is non-finite{in_a_row}"
        return None


def _identity(event: dict[str, Any]) -> str:
    return json.dumps(event, sort_keys=True)


def is_shown(row: dict[str, Any]) -> bool:
    """Return whether a row holds a step, an evaluation or a problem, and not counts alone (skipped samples)."""
    return not row.keys().isdisjoint(("loss", "val_AP", "problem", "non_finite_steps"))


def format_row(row: dict[str, Any]) -> str:
    """Return a row of metrics as one short line."""
    if "problem" in row:
        return redact(str(row["problem"]))
    if "val_AP" in row:
        ap50, ap = ("none" if row.get(name) is None else f"{row[name]:.4f}" for name in ("val_AP50", "val_AP"))
        return f"step {row['step']}: validation AP50 {ap50}, AP {ap}"
    skipped = f", {row['non_finite_steps']} steps skipped" if row.get("non_finite_steps") else ""
    return (
        f"loss {row.get('loss', float('nan')):.4f} (box {row.get('loss_box', 0):.4f}, "
        f"objectness {row.get('loss_objectness', 0):.4f}, class {row.get('loss_classification', 0):.4f}), "
        f"learning rate {row.get('learning_rate', 0):.2e}, {row.get('samples_per_second', 0):.1f} images/s{skipped}"
    )


class _Lines:
    """Plain lines, a few a minute; evaluations and problems at once."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._next_seconds = 0.0
        self._first: tuple[int, float] | None = None

    def show(self, row: dict[str, Any]) -> None:
        if "problem" in row:
            self._first = None  # the time that a problem took says nothing about the pace
        if "val_AP" in row or "problem" in row:
            note(format_row(row))
            return
        if time.monotonic() >= self._next_seconds or row["step"] >= self._num_steps:
            note(f"step {row['step']}/{self._num_steps}{self._remaining(row['step'])}: {format_row(row)}")
            self._next_seconds = time.monotonic() + PLAIN_LINE_SECONDS

    def _remaining(self, step: int) -> str:
        """Return the time left at the pace since the first row."""
        now = time.monotonic()
        if self._first is None or step <= self._first[0]:
            self._first = self._first or (step, now)
            return ""
        seconds = (now - self._first[1]) / (step - self._first[0]) * (self._num_steps - step)
        return f" ({seconds / 60:.0f} min left)" if seconds >= 90 else f" ({seconds:.0f} s left)"

    def close(self) -> None:
        pass


class _Bar:
    """A progress bar with rate, losses, learning rate and the time left."""

    def __init__(self, num_steps: int, done_steps: int) -> None:
        from rich.progress import TextColumn

        self._bar = _progress_bar(TextColumn("[bold]training"), TextColumn("{task.description}"))
        self._task = self._bar.add_task("starting workers", total=num_steps, completed=done_steps)
        self._bar.start()

    def show(self, row: dict[str, Any]) -> None:
        if "val_AP" in row or "problem" in row:
            self._bar.console.print(printable(format_row(row)), markup=False)
        else:
            self._bar.update(self._task, completed=row["step"], description=format_row(row))

    def close(self) -> None:
        self._bar.stop()
