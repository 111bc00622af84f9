"""The report of a search: an HTML page, its charts as files, the results as JSON, and the best job as YAML.

Everything is made from the record, so it can be made anew at any time; it replaces the report before.
"""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from yolofleet.core.page import render_page
from yolofleet.search.charts import Axis, Dot, parallel_coordinates, scatter
from yolofleet.search.directory import BEST_KEY, SearchDirectory
from yolofleet.search.history import best_first
from yolofleet.search.pareto import front
from yolofleet.search.results import AP, Entry, Results, entry_rows, format_value, format_values, load_results
from yolofleet.search.space import Space
from yolofleet.specs.yaml_document import parse_yaml, write_yaml

PAGE_KEY = "report/index.html"
RESULTS_KEY = "report/results.json"
FRONT_KEY = "report/front.json"
PARETO_KEY = "report/pareto.svg"
PARALLEL_KEY = "report/parallel-coordinates.html"
MORE_STYLE = """
.scatter{width:100%;max-width:860px}.parallel{width:100%;min-width:640px}
.run:hover{stroke:#e4572e;stroke-width:4;stroke-opacity:1}
td:nth-child(2),th:nth-child(2){text-align:left}tr.front td{font-weight:600}
"""


def write_report(directory: SearchDirectory) -> Results:
    """Write the report from the record, and return its results.

    Raises:
        UserError: It is not a search directory.
    """
    results = load_results(directory)
    space = Space(results.spec, source=directory.url)
    storage = directory.storage
    pareto = pareto_chart(results)
    parallel = parallel_chart(results, space)
    storage.put(RESULTS_KEY, json.dumps(results.document(), indent=1).encode())
    best = [results.entry(number) for number in results.front]
    rows = [{"trial": e.number, "values": e.values, "figures": e.figures, "measured": e.measured} for e in best]
    storage.put(FRONT_KEY, json.dumps(rows, indent=1).encode())
    if pareto:
        storage.put(PARETO_KEY, _standalone(pareto).encode())
    if results.best is not None:
        storage.put(BEST_KEY, best_job(results, space).encode())
    storage.put(PARALLEL_KEY, render_page(f"{results.spec.name}: all trials", [_wide(parallel)], MORE_STYLE).encode())
    storage.put(
        PAGE_KEY, render_page(f"Search {results.spec.name}", _sections(results, pareto, parallel), MORE_STYLE).encode()
    )
    return results


def best_job(results: Results, space: Space) -> str:
    """Return the job of the best trial as YAML that ``yolofleet train`` takes."""
    assert results.best is not None
    entry = results.entry(results.best)
    document = space.job(entry.values, {"name": f"{results.spec.name}-best"}).document()
    figures = ", ".join(
        f"{o.metric} {format_value(value)}"
        for o in results.spec.objectives
        if (value := entry.value(o.metric)) is not None
    )
    return f"# Trial {entry.number} of search {results.spec.name}: {figures}.\n" + write_yaml(document)


def published_points(results: Results) -> list[Dot]:
    """Return published results for the chart: those of the space, else the paper's models."""
    if results.spec.paper is not None:
        rows = [row for row in results.spec.paper.rows if row.ap is not None and row.gflops is not None]
        if rows:
            where = results.spec.paper.table
            return [Dot(x=row.gflops or 0, y=row.ap or 0, name=f"{row.label} ({where})") for row in rows]
    text = resources.files("yolofleet.search").joinpath("published.yaml").read_text(encoding="utf-8")
    models: list[dict[str, Any]] = parse_yaml(text, source="published.yaml")
    return [
        Dot(x=row["gflops"], y=row["ap"], name=f"{row['model']} at {row['size']} px: {row['ap']} AP, {row['gflops']} G")
        for row in models
    ]


def pareto_chart(results: Results) -> str:
    """Return the chart of AP (or the first objective) against GFLOPs; empty before a trial has completed."""
    metric = AP if any(AP in entry.measured for entry in results.entries) else results.spec.objectives[0].metric
    percent = metric.startswith("val_A")
    scale = 100.0 if percent else 1.0
    done = [entry for entry in results.entries if entry.completed and entry.value(metric) is not None]
    if not done:
        return ""

    def dot(entry: Entry, label: str = "") -> Dot:
        value = scale * (entry.value(metric) or 0.0)
        name = f"trial {entry.number}: {value:.2f}, {entry.figures['gflops']:.4g} G; {format_values(entry.values)}"
        return Dot(x=entry.figures["gflops"], y=value, name=name, label=label)

    numbers = results.front
    if len(results.spec.objectives) == 1:  # the chart has two axes, so it shows the front of both
        points = np.array([[entry.value(metric) or 0.0, -entry.figures["gflops"]] for entry in done])
        numbers = [entry.number for entry, kept in zip(done, front(points), strict=True) if kept]
    ahead = sorted((dot(results.entry(number), str(number)) for number in numbers), key=lambda entry: entry.x)
    return scatter(
        [dot(entry) for entry in done],
        ahead,
        published_points(results) if metric == AP else [],
        x_name="GFLOPs of the deployed form",
        y_name=f"{metric.removeprefix('val_')}{' in percent' if percent else ''}",
    )


def parallel_chart(results: Results, space: Space) -> str:
    """Return the parallel coordinates of all trials that reported: their parameters, then their objectives."""
    objectives = results.spec.objectives
    shown = [entry for entry in results.entries if all(entry.value(o.metric) is not None for o in objectives)]
    if not shown:
        return "<p class='soft'>No trial has reported yet.</p>"
    axes = []
    for name, parameter in space.parameters.by_name.items():
        positions = [parameter.coordinate(e.values[name]) if name in e.values else None for e in shown]
        if parameter.choice is not None and len(parameter.choice) <= 12:
            ticks = [(parameter.coordinate(option), format_value(option)) for option in parameter.options]
        else:
            ticks = [(end, format_value(parameter.at(min(end, 1 - 1e-9)))) for end in (0.0, 0.5, 1.0)]
        axes.append(Axis(name=name.rpartition(".")[2], positions=positions, ticks=ticks))
    for objective in objectives:
        values = [entry.value(objective.metric) or 0.0 for entry in shown]
        low, high = min(values), max(values)
        spread = (high - low) or 1.0
        ticks = [(0.0, format_value(low)), (1.0, format_value(high))] if high > low else [(0.5, format_value(low))]
        positions = [(value - low) / spread if high > low else 0.5 for value in values]
        axes.append(Axis(name=objective.metric, positions=positions, ticks=ticks))
    order = best_first([[o.sign * (entry.value(o.metric) or 0.0) for o in objectives] for entry in shown])
    rank = {index: number for number, index in enumerate(order)}
    quality = [1 - rank[index] / max(len(shown) - 1, 1) for index in range(len(shown))]
    names = [f"trial {entry.number}: {format_values(entry.values)}" for entry in shown]
    return parallel_coordinates(axes, names, quality)


def _sections(results: Results, pareto: str, parallel: str) -> list[str]:
    spec = results.spec
    done = sum(entry.completed for entry in results.entries)
    hours = sum(entry.gpu_seconds for entry in results.entries) / 3600
    cards = {
        "trials": str(len(results.entries)),
        "trained to the end": str(done),
        "refused beforehand": str(results.num_refused),
        "worker hours": f"{hours:.3g}",
    }
    if results.hypervolume is not None:
        cards["hypervolume"] = f"{results.hypervolume:.4g}"
    parts = ["<div class='cards'>"]
    parts += [f"<div class='card'><b>{escape(text)}</b><span>{name}</span></div>" for name, text in cards.items()]
    parts.append("</div>")
    wanted = ", ".join(f"{o.metric} {'up' if o.goal == 'max' else 'down'}" for o in spec.objectives)
    limits = ", ".join(f"{name} {_bounds(limit)}" for name, limit in spec.constraints.items()) or "none"
    facts = {"wanted": wanted, "limits": limits, "algorithm": spec.algorithm.name, "scheduler": spec.scheduler.name}
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    parts.append(f"<dl>{rows}</dl>")
    if pareto:
        parts.append(f"<h2>AP against cost</h2>{pareto}")
    if results.best is not None:
        job = escape(best_job(results, Space(spec, source=spec.name)))
        parts.append(f"<h2>Best job</h2><p class='soft'>best.yaml, beside this report</p><pre>{job}</pre>")
    parts.append(f"<h2>All trials</h2>{_wide(parallel)}")
    parts.append(_importances(results))
    parts.append(f"<h2>Scaling law</h2><p>{escape(results.scaling_law.sentence())}</p>")
    parts.append(_paper(results))
    parts.append(_trial_table(results))
    return parts


def _importances(results: Results) -> str:
    heading = "<h2>What matters</h2>"
    if results.importances is None:
        return f"{heading}<p class='soft'>Too few trials to tell.</p>"
    rows = "".join(
        f"<tr><td>{escape(entry.parameter)}</td><td><i class='bar' style='width:{round(160 * entry.share)}px'></i>"
        f"{entry.share:.0%}</td><td>{format_value(abs(entry.high - entry.low))}</td></tr>"
        for entry in results.importances
    )
    return f"{heading}<table><tr><th>parameter</th><th>share of the variance</th><th>effect</th></tr>{rows}</table>"


def _paper(results: Results) -> str:
    """Return the table of published rows, each beside the trial of the same name."""
    if results.spec.paper is None:
        return ""
    labels = {str(value): entry for entry in results.entries for value in entry.values.values()}
    head = (
        "<tr><th>row</th><th>AP</th><th>here</th><th>GFLOPs</th><th>here</th><th>parameters (M)</th><th>here</th></tr>"
    )
    rows = ""
    for row in results.spec.paper.rows:
        entry = labels.get(row.label)
        measured = None if entry is None else entry.measured.get(AP)
        known = {} if entry is None else entry.figures
        cells = [
            _cell(row.ap),
            "-" if measured is None or entry is None else f"{100 * measured:.2f}{_spread(entry)}",
            _cell(row.gflops),
            _cell(known.get("gflops_with_bias", known.get("gflops"))),
            _cell(row.parameters),
            "-" if "parameters" not in known else f"{known['parameters'] / 1e6:.1f}",
        ]
        rows += f"<tr><td>{escape(row.label)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return f"<h2>{escape(results.spec.paper.table)}</h2><div class='wide'><table>{head}{rows}</table></div>"


def _spread(entry: Entry) -> str:
    return f" ± {100 * entry.spread[AP]:.2f}" if AP in entry.spread else ""


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _trial_table(results: Results) -> str:
    head, *rows = entry_rows(results, results.entries)
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for entry, row in zip(results.entries, rows, strict=True):
        mark = " class='front'" if entry.number in results.front else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f"<tr{mark} title='{escape(entry.state)}'>{cells}</tr>")
    return f"<h2>Trials</h2><div class='wide'><table>{''.join(lines)}</table></div>"


def _bounds(limit: Any) -> str:
    parts = [f"at least {limit.min:g}"] if limit.min is not None else []
    return " and ".join([*parts, *([f"at most {limit.max:g}"] if limit.max is not None else [])])


def _wide(content: str) -> str:
    return f"<div class='wide'>{content}</div>"


def _standalone(chart: str) -> str:
    """Return the SVG with the namespace and the size that a file of its own needs."""
    svg = chart[: chart.index("</svg>") + len("</svg>")]
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="760" height="430" ', 1) + "\n"
