"""The results of a search: its trials, the front, the importance of its parameters and the scaling law.

They are a function of the record, so they can be computed at any time, also while the search runs, and are printed as
lines of text here.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yolofleet.search.directory import SearchDirectory
from yolofleet.search.history import Observation, best_first, objective_bounds, reference_point
from yolofleet.search.importance import Importance, importances
from yolofleet.search.pareto import front, hypervolume
from yolofleet.search.scaling_law import ScalingLaw, fit_scaling_law
from yolofleet.search.space import Space, Values
from yolofleet.search.trials import Trial, Trials
from yolofleet.specs.search import SearchSpec

AP = "val_AP"


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

    def value(self, metric: str) -> float | None:
        """Return a measured metric or a figure; None where there is neither."""
        value = self.measured.get(metric)
        return self.figures.get(metric) if value is None else value


@dataclass(frozen=True)
class Results:
    """A search's results."""

    spec: SearchSpec
    entries: list[Entry]
    """All trials by number."""
    num_refused: int
    """Number of refused candidates."""
    front: list[int]
    """Numbers of the completed trials that no other one dominates, by the first objective."""
    best: int | None
    """Number of the best trial; None before one has completed."""
    hypervolume: float | None
    """Hypervolume between front and reference point, with several objectives."""
    importances: list[Importance] | None
    """Importance of the parameters for the first measured objective; None with too few trials."""
    scaling_law: ScalingLaw
    """AP against training compute."""

    def entry(self, number: int) -> Entry:
        """Return a trial."""
        return self.entries[number]

    def document(self) -> dict[str, Any]:
        """Return the results as plain JSON values."""
        return {
            "name": self.spec.name,
            "objectives": [objective.document() for objective in self.spec.objectives],
            "best": None if self.best is None else asdict(self.entry(self.best)),
            "front": [asdict(self.entry(number)) for number in self.front],
            "trials": [asdict(entry) for entry in self.entries],
            "refused": self.num_refused,
            "gpu_hours": sum(entry.gpu_seconds for entry in self.entries) / 3600,
            "hypervolume": self.hypervolume,
            "importances": None if self.importances is None else [asdict(entry) for entry in self.importances],
            "scaling_law": asdict(self.scaling_law),
        }


def load_results(directory: SearchDirectory) -> Results:
    """Return the results of a search from its directory.

    Raises:
        UserError: It is not a search directory.
    """
    spec = directory.spec()
    trials = Trials(repeats=spec.repeats)
    trials.replay(directory.rows())
    return results_of(spec, trials)


def results_of(spec: SearchSpec, trials: Trials) -> Results:
    """Return the results of a record."""
    observations = {number: trial.result(spec.repeats) for number, trial in trials.trials.items()}
    entries = [_entry(trial, observations[number], spec.repeats) for number, trial in trials.trials.items()]
    done = [entry for entry in entries if entry.completed]
    scored = ((entry.number, observations[entry.number].objectives(spec.objectives)) for entry in done)
    rows = {number: row for number, row in scored if row is not None}
    numbers = list(rows)
    points = np.array([rows[number] for number in numbers]).reshape(len(numbers), len(spec.objectives))
    kept = [number for number, flag in zip(numbers, front(points), strict=True) if flag] if numbers else []
    kept.sort(key=lambda number: -rows[number][0])
    bounds = objective_bounds(spec.objectives, {str(name): limit for name, limit in spec.constraints.items()})
    reference = reference_point([observations[number] for number in numbers], spec.objectives, bounds)
    space = Space(spec, source=f"search {spec.name}")
    return Results(
        spec=spec,
        entries=entries,
        num_refused=trials.num_refused,
        front=kept,
        best=numbers[best_first([rows[number] for number in numbers])[0]] if numbers else None,
        hypervolume=hypervolume(points, reference) if len(spec.objectives) > 1 and numbers else None,
        importances=importances(space.parameters, *_for_importance(entries, spec)),
        scaling_law=fit_scaling_law(
            [
                (entry.figures["training_petaflops"], entry.measured[AP])
                for entry in done
                if AP in entry.measured and "training_petaflops" in entry.figures
            ]
        ),
    )


def _entry(trial: Trial, result: Observation, repeats: int) -> Entry:
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
        gpu_seconds=sum(entry.gpu_seconds for entry in trial.measurements),
        state=trial.end or ("waiting" if newest else "begun"),
        runs=[trial.run_name(repeat) for repeat in range(repeats)],
    )


def _for_importance(entries: list[Entry], spec: SearchSpec) -> tuple[list[Values], list[float], list[float]]:
    """Return the candidates, their first measured objective (more is better) and their share of training."""
    metric = next((o for o in spec.objectives if any(o.metric in entry.measured for entry in entries)), None)
    if metric is None:
        return [], [], []
    chosen = [entry for entry in entries if metric.metric in entry.measured]
    return (
        [entry.values for entry in chosen],
        [metric.sign * entry.measured[metric.metric] for entry in chosen],
        [entry.share for entry in chosen],
    )


COLUMN_LIMIT = 44


def format_value(value: object) -> str:
    """Return a value as a table shows it: a number with four digits, a text cut at the column's width."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value)
        return text if len(text) <= COLUMN_LIMIT else text[: COLUMN_LIMIT - 3] + "..."
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}"


def format_values(values: dict[str, object]) -> str:
    """Return parameters as ``name=value``, each with the last part of its path."""
    return (
        ", ".join(f"{name.rpartition('.')[2]}={format_value(value)}" for name, value in values.items())
        or "(the base job)"
    )


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows (headings first) as aligned lines; the second column, text, is aligned left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def entry_rows(results: Results, entries: Sequence[Entry]) -> list[list[str]]:
    """Return a table of trials as rows of cells, headings first."""
    metrics = list(dict.fromkeys([*(o.metric for o in results.spec.objectives), "gflops", "parameters"]))
    rows = [["trial", "parameters", *(_heading(metric) for metric in metrics), "trained", "state"]]
    for entry in entries:
        cells = [_format_metric(entry, metric) for metric in metrics]
        rows.append(
            [
                str(entry.number),
                format_values(entry.values),
                *cells,
                f"{entry.share:.0%}",
                entry.state.partition(":")[0],
            ]
        )
    return rows


def summary_lines(results: Results, url: str) -> list[str]:
    """Return the results as lines of text."""
    spec = results.spec
    done = sum(entry.completed for entry in results.entries)
    hours = sum(entry.gpu_seconds for entry in results.entries) / 3600
    lines = [
        f"{len(results.entries)} trials, {done} trained to the end, {results.num_refused} candidates refused before "
        f"they cost anything; {hours:.3g} worker hours"
    ]
    if results.best is None:
        failed = [entry for entry in results.entries if entry.state.startswith("failed")]
        lines.append("no trial has completed" + (f"; trial {failed[0].number} {failed[0].state}" if failed else ""))
    else:
        shown = results.front if len(spec.objectives) > 1 else [results.best]
        lines.append("Pareto front:" if len(spec.objectives) > 1 else "best:")
        lines += [
            f"  {line}" for line in format_table(entry_rows(results, [results.entry(number) for number in shown]))
        ]
    if results.importances:
        ranked = ", ".join(f"{entry.parameter} {entry.share:.0%}" for entry in results.importances[:4])
        lines.append(f"what matters: {ranked}")
    lines.append(results.scaling_law.sentence())
    if results.best is not None:
        lines.append(f"train the best: yolofleet train {url}/best.yaml")
    lines.append(f"report: {url}/report/index.html")
    return lines


def _heading(metric: str) -> str:
    return {"parameters": "parameters (M)", "activation_bytes": "activations (GB)"}.get(metric, metric)


def _format_metric(entry: Entry, metric: str) -> str:
    value = entry.value(metric)
    if value is None:
        return "-"
    if metric.startswith("parameters"):
        return f"{value / 1e6:.2f}"
    if metric.endswith("_bytes"):
        return f"{value / 1e9:.2f}"
    if metric.startswith("val_"):
        spread = entry.spread.get(metric)
        return f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")
    return f"{value:.4g}"
