"""Progress of a search on stderr: a live table where there is a terminal, a line for each event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from yolofleet.core.background import BackgroundLoop
from yolofleet.core.terminal import is_terminal, note, printable

if TYPE_CHECKING:
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.engine import SegmentResult, TrialSegment
    from yolofleet.search.session import SearchSession
    from yolofleet.search.trials import Trials
    from yolofleet.tracking.json_lines import LogReader, Row

REFRESH_SECONDS = 1.0
MOST_ROWS = 16

OnSegment = Callable[[str, "TrialSegment", "SegmentResult | None"], None]


@contextmanager
def watch_search(session: SearchSession, directory: SearchDirectory, trials: Trials) -> Iterator[OnSegment]:
    """Show the search on stderr for the length of a with block; yields what to call when a segment begins or ends."""
    if not is_terminal():
        yield lambda kind, segment, result: _print_event(session, trials, kind, segment, result)
        return
    from rich.console import Console
    from rich.live import Live

    running: dict[int, TrialSegment] = {}
    shares = _Shares(directory)

    def on_segment(kind: str, segment: TrialSegment, result: SegmentResult | None) -> None:
        if kind == "begin":
            running[segment.trial] = segment
        else:
            running.pop(segment.trial, None)

    with Live(console=Console(stderr=True), refresh_per_second=2) as live:

        def refresh() -> None:
            live.update(_table(session, shares, trials, dict(running)))

        try:
            with BackgroundLoop(refresh, seconds=REFRESH_SECONDS, name="search-table", warning="no table can be shown"):
                yield on_segment
        finally:
            running.clear()
            refresh()


def _print_event(
    session: SearchSession, trials: Trials, kind: str, segment: TrialSegment, result: SegmentResult | None
) -> None:
    from yolofleet.search.results import format_values

    moment = time.strftime("%H:%M:%S")
    if kind == "begin":
        until = f" to {segment.share:.0%}" if segment.share < 1 else ""
        begun = f", from trial {segment.source.trial}'s weights" if segment.source is not None else ""
        note(f"{moment} trial {segment.run_name}{until}{begun}: {format_values(segment.values)}")
        return
    if result is None:
        return
    if result.failure is not None:
        note(f"{moment} trial {segment.run_name} failed: {result.failure}")
        return
    known = trials.trials[segment.trial].observation.figures | (result.measured or {})
    shown = ", ".join(
        f"{objective.metric} {known[objective.metric]:.4g}" if objective.metric in known else f"{objective.metric} none"
        for objective in session.spec.objectives
    )
    num_ended = sum(trial.end is not None for trial in trials.trials.values())
    note(
        f"{moment} trial {segment.run_name} at {result.share:.0%}: {shown} ({result.gpu_seconds:.1f} worker seconds; "
        f"{num_ended} trials ended, {trials.num_refused} candidates refused)"
    )


def _table(session: SearchSession, shares: _Shares, trials: Trials, running: dict[int, TrialSegment]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from yolofleet.search.history import best_first
    from yolofleet.search.results import format_value, format_values

    objectives = session.spec.objectives
    shown_metrics = list(dict.fromkeys([*(objective.metric for objective in objectives), "gflops"]))
    table = Table(
        title=f"{session.spec.name}: {len(trials.trials)} trials, {trials.num_refused} candidates refused, "
        f"{trials.gpu_seconds / 3600:.3g} worker hours",
        title_justify="left",
    )
    for heading in ("trial", "parameters", *shown_metrics, "trained", "state"):
        table.add_column(heading, justify="left" if heading in ("parameters", "state") else "right")
    known = list(trials.trials.values())
    results = {trial.number: trial.result(session.spec.repeats) for trial in known}
    scored = [(trial, row) for trial in known if (row := results[trial.number].objectives(objectives)) is not None]
    best = [scored[index][0] for index in best_first([row for _, row in scored])]
    busy = [trials.trials[number] for number in running if number in trials.trials]
    shown = busy + [trial for trial in best if trial.number not in running][: MOST_ROWS - len(busy)]
    for trial in shown:
        result = results[trial.number]
        values = [result.value(metric) for metric in shown_metrics]
        state = trial.end or ("running" if trial.number in running else "waiting")
        share = shares.of(running[trial.number].run_name) if trial.number in running else result.share
        table.add_row(
            str(trial.number),
            escape(printable(format_values(trial.values))),
            *("-" if value is None else format_value(value) for value in values),
            f"{share:.0%}",
            state.partition(":")[0],
        )
    return table


class _Shares:
    """How far running trials are, by their run directories."""

    def __init__(self, directory: SearchDirectory) -> None:
        self._directory = directory
        self._readers: dict[str, LogReader] = {}
        self._newest: dict[str, Row] = {}

    def of(self, run_name: str) -> float:
        """Return the share of its steps that a trial's run has done, as far as it is known."""
        from yolofleet.tracking.run_directory import EVENTS, METRICS

        if run_name not in self._readers:
            self._readers[run_name] = self._directory.trial(run_name).reader(EVENTS, METRICS)
        newest = self._newest.setdefault(run_name, {})
        for row in self._readers[run_name].new_rows(only_due=True):
            newest |= {key: row[key] for key in ("step", "num_steps") if key in row}
        return int(newest.get("step", 0)) / int(newest["num_steps"]) if newest.get("num_steps") else 0.0
