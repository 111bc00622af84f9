"""The record of a search, ``trials.jsonl``: what was refused, suggested, measured, exchanged and ended, in that order.

The searcher, the schedulers and the results are functions of its rows, so a search resumes from the record alone. A row
is written before its event takes effect: a trial is in the record before it gets a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from yolofleet.search.history import Observation
from yolofleet.search.space import Values

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


@dataclass(frozen=True)
class Trial:
    """One candidate that trains."""

    number: int
    """Number of the trial, from 0."""
    observation: Observation
    """The candidate as it was suggested."""
    measurements: tuple[Measurement, ...] = ()
    """All measurements, in order."""
    exchanges: tuple[Exchange, ...] = ()
    """Exchanges that changed it."""
    passed: int = 0
    """Number of the newest exchange that it took part in."""
    end: str | None = None
    """Why it ended; None before."""
    failed_seconds: float = 0.0
    """Worker seconds of the segments that failed."""

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
        return next((entry for entry in reversed(self.measurements) if entry.repeat == repeat), None)

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
    """

    repeats: int = 1
    store_row: Callable[[Row], None] = lambda row: None
    trials: dict[int, Trial] = field(default_factory=dict)
    candidates: list[Observation | int] = field(default_factory=list)
    """Refused candidates and numbers of trials, in the order of suggestion."""

    def replay(self, rows: Iterable[Row]) -> None:
        """Apply the rows of an earlier start."""
        for row in rows:
            self._apply(row)

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
        number = len(self.trials)
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
        self.store_row(row)
        self._apply(row)

    def _apply(self, row: Mapping[str, Any]) -> None:
        kind = row.get("kind")
        if kind in ("refused", "suggested"):
            observation = Observation(
                values=dict(row["values"]),
                figures=dict(row["figures"]),
                violations=dict(row.get("violations") or {}),
                notes=dict(row.get("notes") or {}),
            )
            if kind == "refused":
                self.candidates.append(observation)
            elif int(row["trial"]) not in self.trials:
                self.candidates.append(int(row["trial"]))
                self.trials[int(row["trial"])] = Trial(int(row["trial"]), observation)
            return
        if (trial := self.trials.get(int(row.get("trial", -1)))) is None:
            return
        if kind == "measured":
            new = Measurement(
                int(row["repeat"]), float(row["share"]), int(row["step"]), dict(row["measured"]), row["gpu_seconds"]
            )
            before = trial.at(new.repeat)
            if before is None or new.share > before.share:  # a result that was reported twice counts once
                trial = replace(trial, measurements=(*trial.measurements, new))
        elif kind == "exchanged":
            changed = trial.exchanges
            if "donor" in row:
                changed = (*changed, Exchange(int(row["exchange"]), int(row["donor"]), dict(row["values"])))
            trial = replace(trial, exchanges=changed, passed=int(row["exchange"]))
        elif kind == "ended":
            spent = trial.failed_seconds + float(row.get("gpu_seconds", 0.0))
            trial = replace(trial, end=trial.end or str(row["reason"]), failed_seconds=spent)
        self.trials[trial.number] = trial


def _document(observation: Observation) -> Row:
    row: Row = {"values": observation.values, "figures": observation.figures}
    if observation.violations:
        row["violations"] = observation.violations
    if observation.notes:
        row["notes"] = observation.notes
    return row
