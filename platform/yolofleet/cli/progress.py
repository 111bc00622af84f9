"""Progress on stderr: lines that fit the window where there is a terminal, a plain line every ten seconds elsewhere.

`show_progress` counts the work of this process. `show_run` shows the rows and events of a run that reach this process
in memory: from its own threads, and from workers of Ray with their heartbeats. It asks no storage. `writing_pages`
keeps the page of a run or a search up to date for the browser.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from yolofleet.core.background import BackgroundLoop
from yolofleet.core.redaction import redact
from yolofleet.core.terminal import SCREEN, is_terminal, note
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.cli.run_display import RunDisplay

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
    progress = _CountedProgress(activity, total)
    if not is_terminal():
        yield progress.advance
        return
    with SCREEN.drawing(progress.lines):
        yield progress.count


class _CountedProgress:
    """How much of a work is done; several threads may add to it."""

    def __init__(self, activity: str, total: int | None) -> None:
        self._activity = activity
        self._total = total
        self._done = 0
        self._began = self._last_seconds = time.monotonic()
        self._lock = threading.Lock()

    def count(self, count: int) -> None:
        """Add to what is done."""
        with self._lock:
            self._done += count

    def advance(self, count: int) -> None:
        """Add to what is done, and print a plain line where it is time for one."""
        self.count(count)
        with self._lock:
            if time.monotonic() - self._last_seconds >= PLAIN_LINE_SECONDS:
                self._last_seconds = time.monotonic()
                of_total = "" if self._total is None else f" of {self._total:,}"
                note(f"{self._activity}: {self._done:,}{of_total}")

    def lines(self, width: int) -> list[str]:
        """Return it as a line of a terminal."""
        from yolofleet.cli.run_display import bar_line
        from yolofleet.core.durations import describe_duration
        from yolofleet.core.text import fit

        seconds = time.monotonic() - self._began
        if not self._total:
            text = f"{SCREEN.frame()} {self._activity} {self._done:,}"
            return [fit(text, f"  {describe_duration(seconds)}", width=width)]
        left = seconds / self._done * (self._total - self._done) if self._done else None
        return [bar_line(self._activity, self._done, self._total, left, width)]


@contextmanager
def show_run(
    rows: deque[dict[str, Any]],
    num_steps: int,
    done_steps: int,
    activity: str = "the workers start",
    best: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Show a run on stderr for the length of a with block.

    Args:
        rows: Where its rows and events arrive. A thread takes them from there: no one who trains waits for a terminal.
        num_steps: Steps of the whole run.
        done_steps: Those that are done.
        activity: What is done until the first event.
        best: The best evaluation of earlier starts.
    """
    display: RunDisplay | _Lines = _Lines(num_steps)
    if is_terminal():
        from yolofleet.cli.run_display import RunDisplay

        display = RunDisplay(num_steps, done_steps, activity, best)
    problems = _Problems()

    def refresh() -> None:
        while rows:
            row = rows.popleft()
            if "kind" in row:
                display.take_event(row)
                row = {"problem": problems.format(row)}
            if is_shown(row):
                display.show(row)

    warning = "the progress cannot be shown"  # it must never end a run
    try:
        with (
            SCREEN.drawing(display.lines),
            BackgroundLoop(refresh, seconds=REFRESH_SECONDS, name="progress", warning=warning),
        ):
            yield
    finally:
        refresh()
        display.close()


@contextmanager
def writing_pages(url: str) -> Iterator[Callable[[], None]]:
    """Yield what writes the page of a run or a search anew, beside all else, one at a time; it fails nothing."""
    from yolofleet.registry import release

    writing: list[subprocess.Popen[bytes]] = []

    def write() -> None:
        if not (writing and writing[-1].poll() is None):
            with suppress(OSError):
                writing[:] = [release.start_page(url)]

    try:
        yield write
        for process in writing:  # or it would overwrite a newer page
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=release.PAGE_SECONDS)
    finally:
        for process in writing:
            process.kill()
            process.wait()


class _Problems:
    """The events of a run that a user should know of."""

    def __init__(self) -> None:
        self._start_is_again = False

    def format(self, event: dict[str, Any]) -> str | None:
        """Return an event as a line; None for one that is not shown."""
        from yolofleet.tracking.goodput import format_event

        kind = event.get("kind")
        if kind in ("failure", "resize"):  # the driver's own: workers that died may have taken their start with them
            self._start_is_again = True
        if kind == "start":
            is_again, self._start_is_again = self._start_is_again, True
            position = f"step {event.get('step')} with {plural(int(event.get('workers', 1)), 'worker')}"
            return f"the workers started again from {position}" if is_again else None
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
        ap50, ap = (format_ap(row.get(name)) for name in ("val_AP50", "val_AP"))
        loss = f", loss {row['val_loss']:.4f}" if isinstance(row.get("val_loss"), float) else ""
        return f"step {row['step']}: validation AP50 {ap50}, AP {ap}{loss}"
    skipped = f", {plural(row['non_finite_steps'], 'step')} skipped" if row.get("non_finite_steps") else ""
    return (
        f"loss {row.get('loss', float('nan')):.4f} (box {row.get('loss_box', 0):.4f}, "
        f"objectness {row.get('loss_objectness', 0):.4f}, class {row.get('loss_classification', 0):.4f}), "
        f"learning rate {row.get('learning_rate', 0):.2e}, {row.get('samples_per_second', 0):.1f} images/s"
        f"{_efficiency(row)}{skipped}"
    )


def format_ap(value: float | None) -> str:
    """Return an AP; "none" where there was nothing to find."""
    return "none" if value is None else f"{value:.4f}"


class Pace:
    """The time that is left, at the pace since the first row."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._first: tuple[int, float] | None = None

    def forget(self) -> None:
        """Begin anew: the time that a problem took says nothing about the pace."""
        self._first = None

    def seconds_left(self, step: int) -> float | None:
        """Return the time left after a step; None after the first."""
        now = time.monotonic()
        if self._first is None or step <= self._first[0]:
            self._first = self._first or (step, now)
            return None
        return (now - self._first[1]) / (step - self._first[0]) * (self._num_steps - step)


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
        self._pace = Pace(num_steps)

    def take_event(self, event: dict[str, Any]) -> None:
        """Plain lines show problems alone."""

    def show(self, row: dict[str, Any]) -> None:
        """Print a row where it is time for one."""
        if "problem" in row:
            self._pace.forget()
        if "val_AP" in row or "problem" in row:
            note(format_row(row))
            return
        if time.monotonic() >= self._next_seconds or row["step"] >= self._num_steps:
            left = self._pace.seconds_left(row["step"])
            shown = "" if left is None else f" ({left / 60:.0f} min left)" if left >= 90 else f" ({left:.0f} s left)"
            note(f"step {row['step']}/{self._num_steps}{shown}: {format_row(row)}")
            self._next_seconds = time.monotonic() + PLAIN_LINE_SECONDS

    def lines(self, width: int) -> list[str]:
        """Return nothing: there is no terminal."""
        return []

    def close(self) -> None:
        """End."""
