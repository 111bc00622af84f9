"""The results of a search: its trials, the front, the importance of its parameters and the scaling law.

They are a function of the record, so they can be computed at any time, also while the search runs, and are printed as
lines of text here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yolofleet.core.text import plural
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.entry import Entry, entry_of
from yolofleet.search.history import best_first, objective_bounds, reference_point
from yolofleet.search.importance import Importance, importances
from yolofleet.search.paper_report import paper_lines
from yolofleet.search.paper_table import PaperTable, compare_with_paper
from yolofleet.search.pareto import front, hypervolume
from yolofleet.search.scaling_law import ScalingLaw, fit_scaling_law
from yolofleet.search.space import Space, Values
from yolofleet.search.trials import Trials
from yolofleet.specs.search import SearchSpec

AP = "val_AP"


@dataclass(frozen=True)
class Results:
    """A search's results."""

    spec: SearchSpec
    by_number: dict[int, Entry]
    """All trials."""
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
    paper: PaperTable | None
    """The paper's table beside the trials, where the space names one."""

    @property
    def entries(self) -> list[Entry]:
        """All trials, in the order of suggestion."""
        return list(self.by_number.values())

    def entry(self, number: int) -> Entry:
        """Return a trial."""
        return self.by_number[number]

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
            "paper": None if self.paper is None else self.paper.document(),
        }


def load_results(directory: SearchDirectory) -> Results:
    """Return the results of a search from its directory.

    Raises:
        UserError: It is not a search directory, or its record is damaged.
    """
    spec = directory.spec()
    parameters = Space(spec, source=directory.url).parameters
    trials = Trials(repeats=spec.repeats, parameters=parameters, source=directory.record_url)
    trials.replay(directory.rows())
    return results_of(spec, trials)


def results_of(spec: SearchSpec, trials: Trials) -> Results:
    """Return the results of a record."""
    observations = {number: trial.result(spec.repeats) for number, trial in trials.trials.items()}
    entries = [entry_of(trial, observations[number], spec.repeats) for number, trial in trials.trials.items()]
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
        by_number={entry.number: entry for entry in entries},
        num_refused=trials.num_refused,
        front=kept,
        best=numbers[best_first([rows[number] for number in numbers])[0]] if numbers else None,
        hypervolume=hypervolume(points, reference) if len(spec.objectives) > 1 and numbers else None,
        importances=importances(space.parameters, *_for_importance(entries, spec)),
        scaling_law=fit_scaling_law(
            [
                (entry.figures["training_petaflops"], entry.measured[AP])
                for entry in done
                if AP in entry.measured and entry.figures.get("training_petaflops", 0.0) > 0
            ]
        ),
        paper=None if spec.paper is None else compare_with_paper(spec, spec.paper, entries),
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
    """Return rows (headings first) as aligned lines; the last column, text, begins where its heading does."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  ".join([*map(str.rjust, row, widths), row[-1]]) for row in rows]


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
        f"{plural(len(results.entries), 'trial')}, {done} trained to the end, "
        f"{plural(results.num_refused, 'candidate')} refused; {plural(hours, 'worker hour', form='.3g')}"
    ]
    if results.best is None:
        failed = [entry for entry in results.entries if entry.state.startswith("failed")]
        lines.append("no trial has completed" + (f"; trial {failed[0].number} {failed[0].state}" if failed else ""))
    else:
        shown = results.front if len(spec.objectives) > 1 else [results.best]
        lines.append("Pareto front:" if len(spec.objectives) > 1 else "best:")
        rows = entry_rows(results, [results.entry(number) for number in shown])
        lines += [f"  {line}" for line in format_table([[row[0], *row[2:-2], row[1]] for row in rows])]
    if results.paper is not None:
        lines += ["", *paper_lines(results.paper), ""]
    if results.importances:
        ranked = ", ".join(f"{entry.parameter} {entry.share:.0%}" for entry in results.importances[:4])
        lines.append(f"what matters: {ranked}")
    lines.append(results.scaling_law.sentence())
    if results.best is not None:
        lines.append(f"train the best: yolofleet train {url}/best.yaml")
    lines.append(f"report: {url}/report/index.html")
    return lines


def _heading(metric: str) -> str:
    return {"parameters": "params (M)", "activation_bytes": "activations (GB)"}.get(metric, metric)


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
