"""Progress on stderr: a bar where there is a terminal, a plain line every ten seconds elsewhere.

`show_progress` counts the work of this process. `show_run` shows the rows and events of a run that reach this process
in memory: from its own threads, and from workers of Ray with their heartbeats. It asks no storage.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from yolofleet.core.background import BackgroundLoop
from yolofleet.core.redaction import redact
from yolofleet.core.terminal import is_terminal, note, printable

if TYPE_CHECKING:
    from rich.progress import Progress

REFRESH_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0
WAITS = ("data_wait", "copy", "exchange", "checkpoint")
"""Stages of a step in which nothing is computed; a share above `LEAST_WAIT` is shown."""
LEAST_WAIT = 0.05


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
def show_run(rows: deque[dict[str, Any]], num_steps: int, done_steps: int) -> Iterator[None]:
    """Show a run on stderr for the length of a with block.

    Args:
        rows: Where its rows and events arrive. A thread takes them from there: no one who trains waits for a terminal.
        num_steps: Steps of the whole run.
        done_steps: Those that are done.
    """
    display: _Bar | _Lines = _Bar(num_steps, done_steps) if is_terminal() else _Lines(num_steps)
    problems = _Problems()

    def refresh() -> None:
        while rows:
            row = rows.popleft()
            if "kind" in row:
                row = {"problem": problems.format(row)}
            if is_shown(row):
                display.show(row)

    warning = "the progress cannot be shown"  # it must never end a run
    try:
        with BackgroundLoop(refresh, seconds=REFRESH_SECONDS, name="progress", warning=warning):
            yield
    finally:
        refresh()
        display.close()


class _Problems:
    """The events of a run that a user should know of."""

    def __init__(self) -> None:
        self._started = False

    def format(self, event: dict[str, Any]) -> str | None:
        """Return an event as a line; None for one that is not shown."""
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


def is_shown(row: dict[str, Any]) -> bool:
    """Return whether a row holds a step, an evaluation or a problem, and not counts alone (skipped samples)."""
    if "problem" in row:
        return row["problem"] is not None
    return not row.keys().isdisjoint(("loss", "val_AP", "non_finite_steps"))


def format_row(row: dict[str, Any]) -> str:
    """Return a row of metrics as one short line."""
    if "problem" in row:
        return redact(str(row["problem"]))
    if "val_AP" in row:
        ap50, ap = ("none" if row.get(name) is None else f"{row[name]:.4f}" for name in ("val_AP50", "val_AP"))
        loss = f", loss {row['val_loss']:.4f}" if isinstance(row.get("val_loss"), float) else ""
        return f"step {row['step']}: validation AP50 {ap50}, AP {ap}{loss}"
    skipped = f", {row['non_finite_steps']} steps skipped" if row.get("non_finite_steps") else ""
    return (
        f"loss {row.get('loss', float('nan')):.4f} (box {row.get('loss_box', 0):.4f}, "
        f"objectness {row.get('loss_objectness', 0):.4f}, class {row.get('loss_classification', 0):.4f}), "
        f"learning rate {row.get('learning_rate', 0):.2e}, {row.get('samples_per_second', 0):.1f} images/s"
        f"{_efficiency(row)}{skipped}"
    )


def _efficiency(row: dict[str, Any]) -> str:
    """Return the share of the devices' peak, and what the run waits for."""
    waits = [
        f"{name.replace('_', ' ')} {row[f'{name}_share']:.0%}"
        for name in WAITS
        if row.get(f"{name}_share", 0) > LEAST_WAIT
    ]
    reached = f", {row['model_flops_utilization']:.0%} of the peak" if "model_flops_utilization" in row else ""
    return reached + (f", waits: {', '.join(waits)}" if waits else "")


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
