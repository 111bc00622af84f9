"""The record of a search, ``trials.jsonl``: what was refused, suggested, measured, exchanged and ended, in that order.

The searcher, the schedulers and the results are functions of its rows, so a search resumes from the record alone. A row
is written before its event takes effect: a trial is in the record before it gets a worker. Each row is
checked before it counts, for a record may be a stranger's (`yolofleet.search.trial_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from yolofleet.search.history import Observation
from yolofleet.search.space import Parameters, Values
from yolofleet.search.trial_rows import Ended, Exchanged, Measured, Refused, SearchRow, Suggested, parse_row, refuse_row

Row = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """Metrics of one run of a trial at one step."""

    repeat: int
    """Which of the trial's runs."""
    share: float
    """Share of the run's steps done."""
    step: int
    """Steps done."""
    values: dict[str, float]
    """Metrics by name."""
    gpu_seconds: float
    """Worker seconds spent since the measurement before."""


@dataclass(frozen=True)
class Exchange:
    """A change of a population's member: it continues from another trial's weights, with new parameters."""

    number: int
    """Which exchange, from 1."""
    source: int
    """Trial that was copied."""
    values: Values
    """The member's parameters from here on."""


@dataclass
class Trial:
    """One candidate that trains; only `Trials` changes it."""

    number: int
    """Number of the trial, from 0."""
    observation: Observation
    """The candidate as it was suggested."""
    measurements: list[Measurement] = field(default_factory=list)
    """All measurements, in order."""
    exchanges: list[Exchange] = field(default_factory=list)
    """Exchanges that changed it."""
    passed: int = 0
    """Number of the newest exchange that it took part in."""
    end: str | None = None
    """Why it ended; None before."""
    failed_seconds: float = 0.0
    """Worker seconds of the segments that failed."""
    newest: dict[int, Measurement] = field(init=False)
    """The newest measurement of each of its runs."""

    def __post_init__(self) -> None:
        self.newest = {entry.repeat: entry for entry in self.measurements}

    @property
    def values(self) -> Values:
        """The current parameters."""
        return self.exchanges[-1].values if self.exchanges else self.observation.values

    @property
    def failed(self) -> bool:
        """Whether it ended without a result."""
        return self.end is not None and self.end.startswith("failed")

    @property
    def gpu_seconds(self) -> float:
        """Worker seconds spent so far, those of failures included."""
        return sum(entry.gpu_seconds for entry in self.measurements) + self.failed_seconds

    def at(self, repeat: int) -> Measurement | None:
        """Return the newest measurement of one of its runs."""
        return self.newest.get(repeat)

    def at_share(self, share: float) -> Measurement | None:
        """Return the first measurement of its first run at or after a share of the training."""
        return next((entry for entry in self.measurements if entry.repeat == 0 and entry.share >= share - 1e-9), None)

    def run_name(self, repeat: int) -> str:
        """Return the name of one of its run directories; each exchange starts a new one."""
        name = f"{self.number:04d}"
        if repeat:
            name += f"-repeat{repeat}"
        return f"{name}-exchange{self.exchanges[-1].number}" if self.exchanges else name

    def result(self, repeats: int) -> Observation:
        """Return the candidate with its metrics: the means over its runs, once all runs have reported."""
        newest = [entry for repeat in range(repeats) if (entry := self.at(repeat)) is not None]
        measured: dict[str, float] = {}
        share = 0.0
        if len(newest) == repeats:
            share = min(entry.share for entry in newest)
            names = [name for name in newest[0].values if all(name in entry.values for entry in newest)]
            measured = {name: sum(entry.values[name] for entry in newest) / repeats for name in names}
        return replace(self.observation, values=self.values, measured=measured, share=share or 1.0, failed=self.failed)


@dataclass
class Trials:
    """The trials of a search, as its record holds them.

    Args:
        repeats: Runs of each trial.
        store_row: Called with each new row, before it takes effect; not called for replayed rows.
        parameters: The space's; candidates with other values are refused where it is given.
        source: Where the rows come from, for messages.
    """

    repeats: int = 1
    store_row: Callable[[Row], None] = lambda row: None
    parameters: Parameters | None = None
    source: str = "trials.jsonl"
    trials: dict[int, Trial] = field(default_factory=dict)
    candidates: list[Observation | int] = field(default_factory=list)
    """Refused candidates and numbers of trials, in the order of suggestion."""

    def replay(self, rows: Iterable[Row]) -> None:
        """Apply the rows of an earlier start.

        Raises:
            CorruptLogError: A row is damaged.
        """
        for row in rows:
            self._apply(row, parse_row(row, self.source, self.parameters))

    def history(self) -> list[Observation]:
        """Return all candidates with their results, in the order of suggestion."""
        return [
            entry if isinstance(entry, Observation) else self.trials[entry].result(self.repeats)
            for entry in self.candidates
        ]

    def refuse(self, observation: Observation) -> None:
        """Record a candidate that breaks a limit."""
        self._write({"kind": "refused", **_document(observation), "reason": None})

    def suggest(self, observation: Observation) -> Trial:
        """Record a new trial."""
        number = max(self.trials, default=-1) + 1
        self._write({"kind": "suggested", "trial": number, **_document(observation)})
        return self.trials[number]

    def measure(self, number: int, measurement: Measurement) -> None:
        """Record the metrics of a run."""
        self._write(
            {
                "kind": "measured",
                "trial": number,
                "repeat": measurement.repeat,
                "share": measurement.share,
                "step": measurement.step,
                "measured": measurement.values,
                "gpu_seconds": measurement.gpu_seconds,
            }
        )

    def exchange(self, number: int, exchange: Exchange | None, passed: int) -> None:
        """Record that a member of a population passed an exchange, changed or unchanged."""
        row: Row = {"kind": "exchanged", "trial": number, "exchange": passed}
        if exchange is not None:
            row |= {"donor": exchange.source, "values": exchange.values}  # the key is part of the file format
        self._write(row)

    def end(self, number: int, reason: str, failed_seconds: float = 0.0) -> None:
        """Record that a trial has ended, why, and the worker seconds that its failure cost.

        Each of its runs that fails adds a row; the reason is that of the first.
        """
        row: Row = {"kind": "ended", "trial": number, "reason": reason}
        self._write(row | ({"gpu_seconds": failed_seconds} if failed_seconds else {}))

    @property
    def gpu_seconds(self) -> float:
        """Worker seconds spent so far."""
        return sum(trial.gpu_seconds for trial in self.trials.values())

    @property
    def num_refused(self) -> int:
        """Number of refused candidates."""
        return sum(isinstance(entry, Observation) for entry in self.candidates)

    def _write(self, row: Row) -> None:
        parsed = parse_row(row, self.source, self.parameters)  # nothing is stored that cannot be read
        self.store_row(row)
        self._apply(row, parsed)

    def _apply(self, row: Row, parsed: SearchRow | None) -> None:
        if isinstance(parsed, Refused):
            self.candidates.append(parsed.observation())
        elif isinstance(parsed, Suggested):
            if parsed.trial not in self.trials:
                self.candidates.append(parsed.trial)
                self.trials[parsed.trial] = Trial(parsed.trial, parsed.observation())
        elif parsed is not None and (trial := self.trials.get(parsed.trial)) is not None:
            if isinstance(parsed, Measured):
                _measure(trial, parsed)
            elif isinstance(parsed, Exchanged):
                if parsed.source is not None:
                    if parsed.source not in self.trials:
                        refuse_row(row, self.source, "donor: there is no such trial")
                    trial.exchanges.append(Exchange(parsed.exchange, parsed.source, parsed.values))
                trial.passed = parsed.exchange
            elif isinstance(parsed, Ended):
                trial.end = trial.end or parsed.reason
                trial.failed_seconds += parsed.gpu_seconds


def _measure(trial: Trial, row: Measured) -> None:
    before = trial.at(row.repeat)
    if before is None or row.share > before.share:  # a result that was reported twice counts once
        new = Measurement(row.repeat, row.share, row.step, row.measured, row.gpu_seconds)
        trial.measurements.append(new)
        trial.newest[row.repeat] = new


def _document(observation: Observation) -> Row:
    row: Row = {"values": observation.values, "figures": observation.figures}
    if observation.violations:
        row["violations"] = observation.violations
    if observation.notes:
        row["notes"] = observation.notes
    return row
