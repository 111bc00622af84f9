"""The lines of a run on a terminal of any width: the bar, what is done beside training, and the newest figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from yolofleet.cli.progress import Pace, format_ap, format_row
from yolofleet.core.durations import describe_duration
from yolofleet.core.terminal import SCREEN, note
from yolofleet.core.text import fit, plural

MOST_LINES = 3
"""Lines of figures below the bar."""
SHORTEST_BAR, LONGEST_BAR = 6, 40
ACTIVITIES = {
    "waiting": "waiting for nodes",
    "starting": "Ray starts {workers}",
    "start": "{workers} ready: the first shards and step {next_step}",
    "evaluating": "evaluating step {step}",
    "failure": "the workers have failed, and start again",
    "resize": "the workers start again, with another number of workers",
    "left": "the state is saved; the workers exit",
    "end": "the last step is done; the workers exit",
}
"""What is done after an event, until the next row of metrics."""


class RunDisplay:
    """The lines of a run on a terminal: the bar, what is done beside training, and the newest figures.

    Args:
        num_steps: Steps of the whole run.
        done_steps: Those that are done.
        activity: What is done now.
        best: The best evaluation of earlier starts.
    """

    def __init__(self, num_steps: int, done_steps: int, activity: str, best: Mapping[str, Any] | None = None) -> None:
        self._num_steps = num_steps
        self._step = done_steps
        self._pace = Pace(num_steps)
        self._left: tuple[float, float] | None = None  # seconds, and when that was known
        self._activity: tuple[str, float] | None = (activity, time.monotonic())
        self._row: dict[str, Any] = {}
        self._workers: str | None = None
        self._ap: tuple[float | None, int] | None = None
        self._best: tuple[float, int] | None = None if best is None else (best["val_AP"], best["step"])

    def take_event(self, event: dict[str, Any]) -> None:
        """Show what is done after an event."""
        if "workers" in event:
            self._workers = plural(int(event.get("workers", 1)), "worker")
        if (text := ACTIVITIES.get(str(event.get("kind")))) is not None:
            step = event.get("step", 0)
            text = text.format(workers=self._workers, step=step, next_step=int(step or 0) + 1)
            self._activity = (text, time.monotonic())

    def show(self, row: dict[str, Any]) -> None:
        """Take a row of metrics; an evaluation or a problem is a line of its own, which stays."""
        if "problem" in row:
            self._pace.forget()
            self._left = None
            note(format_row(row))
            return
        self._activity = None
        if "val_AP" in row:
            ap = row["val_AP"]
            self._ap = (ap, row["step"])
            if ap is not None and (self._best is None or ap > self._best[0]):
                self._best = (ap, row["step"])
            note(format_row(row))
            return
        self._step, self._row = row["step"], row
        left = self._pace.seconds_left(self._step)
        self._left = None if left is None else (left, time.monotonic())

    def lines(self, width: int) -> list[str]:
        """Return the lines as they stand now."""
        now = time.monotonic()
        left = None if self._left is None else max(self._left[0] - (now - self._left[1]), 0.0)
        lines = [bar_line("training", self._step, self._num_steps, left, width)]
        if self._activity is not None:
            text, since = self._activity
            lines.append(fit(f"{SCREEN.frame()} {text}", f"  {describe_duration(now - since)}", width=width))
        return lines + fill(list(self._figures()), width, MOST_LINES)

    def _figures(self) -> Iterator[str]:
        row = self._row
        if self._ap is not None:
            best = f" (best {self._best[0]:.4f}, step {self._best[1]})" if self._best is not None else ""
            yield f"AP {format_ap(self._ap[0])}{best}"
        if "loss" in row:
            yield f"loss {row['loss']:.4f}"
            for part, name in (("box", "box"), ("objectness", "objectness"), ("classification", "class")):
                if f"loss_{part}" in row:
                    yield f"{name} {row[f'loss_{part}']:.4f}"
            yield f"learning rate {row.get('learning_rate', 0):.2e}"
            yield f"{row.get('samples_per_second', 0):.1f} images/s"
            yield f"data wait {row.get('data_wait_share', 0):.0%}"
        if self._workers is not None:
            yield self._workers
        if row.get("non_finite_steps"):
            yield f"{row['non_finite_steps']} skipped"

    def close(self) -> None:
        """Leave the last lines on the screen."""
        self._activity = None
        for line in self.lines(SCREEN.width)[: None if self._row else 1]:
            note(line)


def bar_line(activity: str, done: int, total: int, seconds_left: float | None, width: int) -> str:
    """Return a bar with its counts and the time left, in a width; the bar takes what room there is."""
    left = "" if seconds_left is None else f"  {describe_duration(seconds_left)} left"
    end = f" {done:,}/{total:,}{left}"
    room = width - len(activity) - 1 - len(end)
    if room < SHORTEST_BAR:
        return fit(activity, end, width=width)
    length = min(room, LONGEST_BAR)
    filled = round(length * min(done / max(total, 1), 1.0))
    full, empty = ("━", "─") if SCREEN.is_unicode else ("#", "-")
    return f"{activity} {full * filled}{empty * (length - filled)}{end}"


def fill(parts: list[str], width: int, most_lines: int) -> list[str]:
    """Return lines of whole parts, as many as fit; a part that is wider than the window is left out."""
    lines: list[str] = []
    for part in (part for part in parts if len(part) <= width):
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        elif len(lines) < most_lines:
            lines.append(part)
    return lines
