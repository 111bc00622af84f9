"""Progress of a search on stderr: a live table where there is a terminal, a line for each event elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolofleet.cli.run_display import MOST_LINES, fill
from yolofleet.core.background import BackgroundLoop
from yolofleet.core.durations import describe_duration
from yolofleet.core.terminal import SCREEN, is_terminal, note
from yolofleet.core.text import and_more, fit, plural
from yolofleet.search.forecast import seconds_left, work_done
from yolofleet.search.history import best_first
from yolofleet.search.pareto import front
from yolofleet.search.results import format_value, format_values

if TYPE_CHECKING:
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.engine import SegmentResult, TrialSegment
    from yolofleet.search.session import SearchSession
    from yolofleet.search.trials import Trial, Trials
    from yolofleet.tracking.json_lines import LogReader, Row

REFRESH_SECONDS = 1.0
MOST_ROWS = 16
MOST_FAILED = 3
LINES_AROUND = 7
"""Lines of a screen that are not rows of the table."""
LEAST_PARAMETERS = 12
"""Characters that the parameters need; where the window is too narrow, they are left out."""

OnSegment = Callable[[str, "TrialSegment", "SegmentResult | None"], None]
Running = Mapping[tuple[int, int], "Live"]
"""The runs that train now, by trial and repeat."""


@dataclass(frozen=True)
class Live:
    """What is known of a run that trains now."""

    share: float = 0.0
    """Share of its steps done."""
    metrics: Mapping[str, float] | None = None
    """Newest value of each metric; None before its first step."""


@contextmanager
def watch_search(session: SearchSession, directory: SearchDirectory, trials: Trials) -> Iterator[OnSegment]:
    """Show the search on stderr for the length of a with block; yields what to call when a segment begins or ends."""
    display = SearchDisplay(session, trials)
    if not is_terminal():
        yield lambda kind, segment, result: display.print_event(kind, segment, result)
        return
    running: dict[tuple[int, int], TrialSegment] = {}
    reader = _RunReader(directory)

    def on_segment(kind: str, segment: TrialSegment, result: SegmentResult | None) -> None:
        if kind == "begin":
            running[segment.trial, segment.repeat] = segment
        else:
            running.pop((segment.trial, segment.repeat), None)

    now: dict[tuple[int, int], Live] = {}

    def refresh() -> None:
        nonlocal now
        now = {key: reader.newest(segment.run_name) for key, segment in dict(running).items()}

    def lines(width: int) -> list[str]:
        return display.lines(now, max(shutil.get_terminal_size().lines - LINES_AROUND, 3), width)

    warning = "the search cannot be shown"
    try:
        with (
            SCREEN.drawing(lines),
            BackgroundLoop(refresh, seconds=REFRESH_SECONDS, name="search-table", warning=warning, at_once=True),
        ):
            yield on_segment
    finally:
        now = {}
        for line in lines(SCREEN.width):
            note(line)


class SearchDisplay:
    """What is shown of a search.

    Args:
        session: The search.
        trials: Its record, which grows.
        clock: Seconds since any moment.
    """

    def __init__(self, session: SearchSession, trials: Trials, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec = session.spec
        self._num_candidates = session.space.parameters.num_candidates
        self._trials = trials
        self._clock = clock
        self._start_seconds = clock()
        self._done_before = work_done(self._spec, trials, {}, self._num_candidates) or 0.0

    def budget(self, running: Running) -> str:
        """Return how much of the budget is used, and how long the rest will take."""
        trials, limits = self._trials, self._spec.budget
        ended = sum(trial.end is not None for trial in trials.trials.values())
        failed = sum(trial.failed for trial in trials.trials.values())
        used_hours = trials.gpu_seconds / 3600
        if limits.gpu_hours is None:
            hours = plural(used_hours, "worker hour", form=".3g")
        else:
            hours = f"{used_hours:.3g} of {plural(limits.gpu_hours, 'worker hour', form='g')}"
        most = self._most_trials()
        parts = [
            f"{ended} of {plural(most, 'trial')} ended" if most else f"{plural(ended, 'trial')} ended",
            *([f"{failed} failed"] if failed else []),
            f"{plural(trials.num_refused, 'candidate')} refused",
            hours,
        ]
        shares = {key: live.share for key, live in running.items()}
        done = work_done(self._spec, trials, shares, self._num_candidates)
        elapsed = self._clock() - self._start_seconds
        of_wall = "" if limits.wall_hours is None else f" of {describe_duration(3600 * limits.wall_hours)}"
        left = seconds_left(self._spec, elapsed, done, self._done_before)
        parts.append(
            f"{describe_duration(elapsed)}{of_wall}" + ("" if not left else f", about {describe_duration(left)} left")
        )
        return "; ".join(parts)

    def _most_trials(self) -> int | None:
        return min((n for n in (self._spec.budget.trials, self._num_candidates) if n is not None), default=None)

    def print_event(self, kind: str, segment: TrialSegment, result: SegmentResult | None) -> None:
        """Print the begin or the end of a segment as a line."""
        head = f"{time.strftime('%H:%M:%S')} trial {segment.run_name}"
        if kind == "begin":
            until = f" to {segment.share:.0%}" if segment.share < 1 else ""
            begun = f", from trial {segment.source.trial}'s weights" if segment.source is not None else ""
            most = self._most_trials()
            number = f" (number {segment.trial + 1}" + (f" of {most})" if most else ")")
            note(f"{head}{number}{until}{begun}: {format_values(segment.values)}")
            return
        if result is None:
            return
        if result.failure is not None:
            note(f"{head} failed: {result.failure}")
            return
        if result.outage is not None:
            note(f"{head} is tried again: {result.outage}")
            return
        known = self._trials.trials[segment.trial].observation.figures | (result.measured or {})
        shown = ", ".join(
            f"{o.metric} {known[o.metric]:.4g}" if o.metric in known else f"{o.metric} none"
            for o in self._spec.objectives
        )
        note(f"{head} at {result.share:.0%}: {shown} ({result.gpu_seconds:.1f} worker seconds); {self.budget({})}")

    def lines(self, running: Running, most_rows: int, width: int) -> list[str]:
        """Return what is shown of the search, in a width: the budget, the best so far, and a row for each trial."""
        parts = [f"{self._spec.name}: {(budget := self.budget(running).split('; '))[0]}", *budget[1:]]
        headings, rows = self.rows(running, most_rows)
        shown = fill(parts, width, MOST_LINES) + [line for line in (self.best(),) if line is not None]
        if not rows:
            since = describe_duration(self._clock() - self._start_seconds)
            text = f"{SCREEN.frame()} choosing the first trials and starting their processes: about half a minute"
            return [*shown, fit(text, f"  {since}", width=width)]
        column = headings.index("parameters")
        table = [headings, *rows]
        room = width - sum(_widest(table, index) + 2 for index in range(len(headings)) if index != column)
        if room < LEAST_PARAMETERS:
            table = [[*cells[:column], *cells[column + 1 :]] for cells in table]
        else:
            table = [[*cells[:column], _whole_parts(cells[column], room), *cells[column + 1 :]] for cells in table]
        widths = [_widest(table, index) for index in range(len(table[0]))]
        for cells in table:
            aligned = map(_aligned, cells, widths, table[0])
            shown.append("  ".join(aligned))
        return [fit(line.rstrip(), width=width) for line in shown]

    def best(self) -> str | None:
        """Return the best trial so far, or the size of the front; None before the first."""
        objectives = self._spec.objectives
        rows = [
            (trial, values)
            for trial in self._trials.trials.values()
            if (values := trial.result(self._spec.repeats).objectives(objectives)) is not None
        ]
        if not rows:
            return None
        if len(objectives) > 1 and (marks := self._marks([(t, row) for t, row in rows if t.end == "completed"])):
            numbers = ", ".join(str(number) for number in marks)
            return f"front: {plural(len(marks), 'trial')} ({numbers})"
        trial = rows[best_first([values for _, values in rows])[0]][0]
        value = trial.result(self._spec.repeats).value(objectives[0].metric)
        return None if value is None else f"best so far: trial {trial.number}, {objectives[0].metric} {value:.4f}"

    def rows(self, running: Running, most_rows: int) -> tuple[list[str], list[list[str]]]:
        """Return the headings and the cells: trials that train, then the best, then the newest that failed."""
        objectives = self._spec.objectives
        metrics = list(dict.fromkeys([*(objective.metric for objective in objectives), "gflops"]))
        known = list(self._trials.trials.values())
        results = {trial.number: trial.result(self._spec.repeats) for trial in known}
        busy = [trial for trial in known if any(key[0] == trial.number for key in running)]
        failed = [trial for trial in known if trial.failed][-MOST_FAILED:]
        scored = [
            (trial, row)
            for trial in known
            if trial not in busy and (row := results[trial.number].objectives(objectives)) is not None
        ]
        best = [scored[index][0] for index in best_first([row for _, row in scored])]
        marks = self._marks([(trial, row) for trial, row in scored if trial.end == "completed"])
        most = min(MOST_ROWS, most_rows)
        shown = [*busy, *best[: max(most - len(busy) - len(failed), 1)], *failed][:most]
        rows = []
        for trial in shown:
            live = [entry for key, entry in sorted(running.items()) if key[0] == trial.number]
            result = results[trial.number]
            values = [_live_value(live, metric, result.value(metric)) for metric in metrics]
            state = _state(trial, live) + (f", {marks[trial.number]}" if trial.number in marks else "")
            cells = ["-" if value is None else format_value(value) for value in values]
            rows.append([str(trial.number), format_values(trial.values), *cells, self._trained(trial, running), state])
        return ["trial", "parameters", *metrics, "trained", "state"], rows

    def _trained(self, trial: Trial, running: Running) -> str:
        """Return the share of a trial's runs that is trained."""
        shares = []
        for repeat in range(self._spec.repeats):
            newest, live = trial.at(repeat), running.get((trial.number, repeat))
            shares.append(max(0.0 if newest is None else newest.share, 0.0 if live is None else live.share))
        return f"{sum(shares) / len(shares):.0%}"

    def _marks(self, completed: list[tuple[Trial, list[float]]]) -> dict[int, str]:
        """Return the mark of the best trial, or of all on the front, by number."""
        if not completed:
            return {}
        if len(self._spec.objectives) == 1:
            return {completed[best_first([row for _, row in completed])[0]][0].number: "best"}
        import numpy as np

        on_front = front(np.array([row for _, row in completed]))
        return {trial.number: "front" for (trial, _), flag in zip(completed, on_front, strict=True) if flag}


def _live_value(live: list[Live], metric: str, known: float | None) -> float | None:
    """Return the newest value of a run that trains now, else what the record has."""
    values = [entry.metrics[metric] for entry in live if entry.metrics is not None and metric in entry.metrics]
    return sum(values) / len(values) if values else known


def _state(trial: Trial, live: list[Live]) -> str:
    if live:
        return "running" if any(entry.metrics is not None for entry in live) else "starting"
    return (trial.end or "waiting").partition(":")[0]


def _whole_parts(text: str, width: int) -> str:
    """Return "a=1, b=2, c=3" in a width: as many whole parts as fit."""
    parts = text.split(", ")
    for most in range(len(parts), 0, -1):
        shown = and_more(parts, most)
        if len(shown) <= width:
            return shown
    return ".."


def _widest(table: list[list[str]], index: int) -> int:
    return max(len(cells[index]) for cells in table)


def _aligned(cell: str, width: int, heading: str) -> str:
    return cell.ljust(width) if heading in ("parameters", "state") else cell.rjust(width)


class _RunReader:
    """Reads how far the running trials are, and what they measured last, from their run directories."""

    def __init__(self, directory: SearchDirectory) -> None:
        self._directory = directory
        self._readers: dict[str, LogReader] = {}
        self._newest: dict[str, Row] = {}

    def newest(self, run_name: str) -> Live:
        """Return the newest of a trial's run, as far as it is known."""
        from yolofleet.tracking.run_directory import EVENTS, METRICS

        if run_name not in self._readers:
            self._readers[run_name] = self._directory.trial(run_name).reader(EVENTS, METRICS)
        newest = self._newest.setdefault(run_name, {})
        for row in self._readers[run_name].new_rows(only_due=True):
            newest |= {key: value for key, value in row.items() if isinstance(value, int | float)}
        if "step" not in newest or not newest.get("num_steps"):
            return Live()
        return Live(int(newest["step"]) / int(newest["num_steps"]), dict(newest))
