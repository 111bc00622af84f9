"""A search's results as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from yolofleet.search.results import Entry, Results

COLUMN_LIMIT = 44


def short(value: object) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value)
        return text if len(text) <= COLUMN_LIMIT else text[: COLUMN_LIMIT - 3] + "..."
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}"


def described(values: dict[str, object]) -> str:
    """Return parameters as ``name=value`` with the last part of each path."""
    return ", ".join(f"{name.rpartition('.')[2]}={short(value)}" for name, value in values.items()) or "(the base job)"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows (the first one the headings) as aligned lines: text left, numbers right."""
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
    """Return a table of trials, headings first."""
    metrics = list(dict.fromkeys([*(o.metric for o in results.spec.objectives), "gflops", "parameters"]))
    rows = [["trial", "parameters", *(_heading(metric) for metric in metrics), "trained", "state"]]
    for entry in entries:
        cells = [_shown(entry, metric) for metric in metrics]
        rows.append(
            [str(entry.number), described(entry.values), *cells, f"{entry.share:.0%}", entry.state.partition(":")[0]]
        )
    return rows


def summary_lines(results: Results, url: str) -> list[str]:
    """Return what a finished search tells its user."""
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
        lines += [f"  {line}" for line in table(entry_rows(results, [results.entry(number) for number in shown]))]
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


def _shown(entry: Entry, metric: str) -> str:
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
