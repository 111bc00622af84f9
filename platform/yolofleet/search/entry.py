"""One trial among the results of a search."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from yolofleet.search.history import Observation
from yolofleet.search.space import Values
from yolofleet.search.trials import Trial


@dataclass(frozen=True)
class Entry:
    """One trial."""

    number: int
    values: Values
    """Its parameters."""
    figures: dict[str, float]
    """Figures known before it trained."""
    measured: dict[str, float]
    """Means of its metrics over its runs."""
    spread: dict[str, float]
    """Standard deviations over its runs, where there are at least two."""
    share: float
    """Share of its training done."""
    gpu_seconds: float
    """Worker seconds spent."""
    state: str
    """begun, waiting, completed, stopped or failed, with the reason."""
    runs: list[str]
    """Names of its run directories."""

    @property
    def completed(self) -> bool:
        """Whether it has trained to its end."""
        return self.state == "completed"

    @property
    def has_ended(self) -> bool:
        """Whether it trains no more."""
        return self.state not in ("begun", "waiting")

    def value(self, metric: str) -> float | None:
        """Return a measured metric or a figure; None where there is neither."""
        value = self.measured.get(metric)
        return self.figures.get(metric) if value is None else value


def entry_of(trial: Trial, result: Observation, repeats: int) -> Entry:
    """Return a trial with the result of its runs."""
    newest = [entry for repeat in range(repeats) if (entry := trial.at(repeat)) is not None]
    spread = {
        name: statistics.stdev(entry.values[name] for entry in newest) for name in result.measured if len(newest) > 1
    }
    return Entry(
        number=trial.number,
        values=result.values,
        figures=result.figures,
        measured=result.measured,
        spread=spread,
        share=result.share if result.measured else 0.0,
        gpu_seconds=trial.gpu_seconds,
        state=trial.end or ("waiting" if newest else "begun"),
        runs=[trial.run_name(repeat) for repeat in range(repeats)],
    )
