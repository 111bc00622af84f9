"""The report of a search: an HTML page, its charts as files, the results as JSON, and the best job as YAML.

Everything is made from the record, so it can be made anew at any time; it replaces the report before.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np

from yolofleet.core.page import render_page
from yolofleet.evaluation import scatter as scatter_chart
from yolofleet.evaluation.published import COSTS, published_groups
from yolofleet.evaluation.scatter import Dot, Group, scatter
from yolofleet.search import paper_report
from yolofleet.search.charts import Axis, parallel_coordinates
from yolofleet.search.directory import BEST_KEY, SearchDirectory
from yolofleet.search.entry import Entry
from yolofleet.search.history import best_first
from yolofleet.search.paper_report import paper_section
from yolofleet.search.pareto import front
from yolofleet.search.results import AP, Results, entry_rows, format_value, format_values, load_results
from yolofleet.search.space import Space
from yolofleet.specs.yaml_document import write_yaml

PAGE_KEY = "report/index.html"
RESULTS_KEY = "report/results.json"
FRONT_KEY = "report/front.json"
PARETO_KEY = "report/pareto.svg"
PARALLEL_KEY = "report/parallel-coordinates.html"
FRONT, OTHER, PAPER = "#3b7dd8", "#8fa3bd", "#e4572e"
MARKS = "<p class='soft'>Discs are trials, diamonds are published: COCO val2017, trained in full.</p>"
UNITS = {"gflops": "G", "parameters": "M", "milliseconds": "ms"}
MORE_STYLE = f"""{scatter_chart.STYLE}{paper_report.STYLE}
.parallel{{width:100%;min-width:640px}}
.run:hover{{stroke:#e4572e;stroke-width:4;stroke-opacity:1}}
td:nth-child(2),th:nth-child(2){{text-align:left}}tr.front td{{font-weight:600}}
"""


def write_report(directory: SearchDirectory) -> Results:
    """Write the report from the record, and return its results.

    Raises:
        UserError: It is not a search directory.
    """
    results = load_results(directory)
    space = Space(results.spec, source=directory.url)
    storage = directory.storage
    charts = cost_charts(results)
    parallel = parallel_chart(results, space)
    storage.put(RESULTS_KEY, json.dumps(results.document(), indent=1).encode())
    best = [results.entry(number) for number in results.front]
    rows = [{"trial": e.number, "values": e.values, "figures": e.figures, "measured": e.measured} for e in best]
    storage.put(FRONT_KEY, json.dumps(rows, indent=1).encode())
    if charts:
        storage.put(PARETO_KEY, _standalone(charts["gflops"]).encode())
    if results.best is not None:
        storage.put(BEST_KEY, best_job(results, space).encode())
    storage.put(PARALLEL_KEY, render_page(f"{results.spec.name}: all trials", [_wide(parallel)], MORE_STYLE).encode())
    storage.put(
        PAGE_KEY, render_page(f"Search {results.spec.name}", _sections(results, charts, parallel), MORE_STYLE).encode()
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


def cost_charts(results: Results) -> dict[str, str]:
    """Return charts of AP (or the first objective) against each known cost of the trials, by the cost's name."""
    charts = {cost: chart for cost in COSTS if (chart := _cost_chart(results, cost))}
    if results.paper is not None and len({entry.figures.get("gflops") for entry in results.entries}) == 1:
        return {}  # trials of one cost, such as those of an ablation, would lie above one another
    return charts


def _cost_chart(results: Results, cost: str) -> str:
    metric = AP if any(AP in entry.measured for entry in results.entries) else results.spec.objectives[0].metric
    percent = metric.startswith("val_A")
    scale = 100.0 if percent else 1.0
    done = [
        (entry, at, scale * value)
        for entry in results.entries
        if entry.completed and (value := entry.value(metric)) is not None and (at := _cost(entry, cost)) is not None
    ]
    if not done:
        return ""
    ahead = front(np.array([[value, -at] for _, at, value in done]))
    dots: dict[bool, list[Dot]] = {True: [], False: []}
    for (entry, at, value), leads in zip(done, ahead, strict=True):
        name = f"trial {entry.number}: {value:.2f}, {at:.4g} {UNITS[cost]}; {format_values(entry.values)}"
        dots[bool(leads)].append(Dot(x=at, y=value, name=name, label=str(entry.number) if leads else ""))
    trials = [
        Group(name="other trials", colour=OTHER, dots=dots[False]),
        Group(name="front of the trials", colour=FRONT, dots=dots[True], line="steps"),
    ]
    published = _published(results, cost) if metric == AP else []
    name = f"{metric.removeprefix('val_')}{' in percent' if percent else ''}"
    return scatter([*published, *trials], x_name=COSTS[cost], y_name=name)


def _cost(entry: Entry, cost: str) -> float | None:
    """Return a cost of a trial in the units of the published ones."""
    if cost == "parameters":
        return entry.figures["parameters"] / 1e6
    return entry.figures.get({"milliseconds": "latency_milliseconds"}.get(cost, cost))


def _published(results: Results, cost: str) -> list[Group]:
    """Return the rows of the space's table, at the cost of their trial where none is printed, or else all models."""
    if results.paper is None:
        return published_groups(cost)
    dots = []
    for variant in results.paper.variants:
        at = getattr(variant.row, cost, None) or (None if variant.entry is None else _cost(variant.entry, cost))
        if at is not None and (value := variant.printed("ap")) is not None:
            dots.append(Dot(x=at, y=value, name=f"{variant.label}: {results.paper.format(value)} AP, {at:.4g}"))
    return [Group(name=f"{results.paper.table} of the paper", colour=PAPER, dots=dots, mark="diamond")]


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


def _sections(results: Results, charts: dict[str, str], parallel: str) -> list[str]:
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
    if results.paper is not None:
        parts.append(paper_section(results.paper))
    if charts:
        drawn = "".join(f"<div>{chart}</div>" for chart in charts.values())
        parts.append(f"<h2>AP against cost</h2>{MARKS}<div class='charts'>{drawn}</div>")
    if results.best is not None:
        job = escape(best_job(results, Space(spec, source=spec.name)))
        summary = "<summary>best.yaml, beside this report</summary>"
        parts.append(f"<h2>Best job</h2><details>{summary}<div class='wide'><pre>{job}</pre></div></details>")
    parts.append(f"<h2>All trials</h2>{_wide(parallel)}")
    parts.append(_importances(results))
    parts.append(f"<h2>Scaling law</h2><p>{escape(results.scaling_law.sentence())}</p>")
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
