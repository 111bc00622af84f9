"""The report of a search: an HTML page, the results as JSON, and the best job as YAML.

Everything is made from the record, so it can be made anew at any time; it replaces the report before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from yolofleet.evaluation.published import COSTS, published_series
from yolofleet.reports.charts import COLOURS, Axis, Series, chart, parallel
from yolofleet.reports.page import (
    Cell,
    Markup,
    Section,
    Table,
    cards,
    facts,
    folded,
    grid,
    render_page,
    scrolling,
    table,
    text,
    text_cell,
)
from yolofleet.search.directory import BEST_KEY, SearchDirectory
from yolofleet.search.entry import Entry
from yolofleet.search.history import best_first
from yolofleet.search.paper_report import paper_section
from yolofleet.search.pareto import front
from yolofleet.search.results import AP, Results, entry_rows, format_value, format_values, load_results
from yolofleet.search.space import Space
from yolofleet.specs.yaml_document import write_yaml
from yolofleet.tracking.run_page import write_run_page

PAGE_KEY = "report/index.html"
RESULTS_KEY = "report/results.json"
FRONT_KEY = "report/front.json"
COCO = "published models: COCO val2017, trained in full"
UNITS = {"gflops": "G", "parameters": "M", "milliseconds": "ms"}
MOST_SLICES = 12


def write_report(directory: SearchDirectory) -> Results:
    """Write the report from the record, and return its results; trials that have ended get their pages, too.

    Raises:
        UserError: It is not a search directory.
    """
    results = load_results(directory)
    space = Space(results.spec, source=directory.url)
    storage = directory.storage
    storage.put(RESULTS_KEY, json.dumps(results.document(), indent=1).encode())
    best = [results.entry(number) for number in results.front]
    rows = [{"trial": e.number, "values": e.values, "figures": e.figures, "measured": e.measured} for e in best]
    storage.put(FRONT_KEY, json.dumps(rows, indent=1).encode())
    if results.best is not None:
        storage.put(BEST_KEY, best_job(results, space).encode())
    pages = _write_trial_pages(directory, results)
    storage.put(PAGE_KEY, render_search(results, {name: f"../trials/{name}/{PAGE_KEY}" for name in pages}).encode())
    return results


def _write_trial_pages(directory: SearchDirectory, results: Results) -> list[str]:
    """Write the pages that runs of ended trials lack, and return the names of all runs that have one."""
    pages = []
    for entry in results.entries:
        for name in entry.runs:
            run = directory.trial(name)
            if run.storage.exists(PAGE_KEY):
                pages.append(name)
            elif entry.has_ended and run.job_text() is not None:
                write_run_page(run)
                pages.append(name)
    return pages


def render_search(results: Results, pages: Mapping[str, str], *, live: bool = False) -> str:
    """Return the page of a search.

    Args:
        results: Its results.
        pages: Addresses of the pages of its trials' runs, by the run's name.
        live: Whether a server renders it anew while the search goes.
    """
    spec = results.spec
    space = Space(spec, source=spec.name)
    sections = [
        Section(title="Figures", body=_figures(results)),
        None if results.paper is None else paper_section(results.paper),
        _cost_section(results),
        Section(title="Trials", body=_trial_table(results, pages), note="The front is in bold."),
        Section(title="What matters", body=_importances(results)),
        Section(title="Slices", body=_slices(results, space), note=f"{spec.objectives[0].metric} by each parameter."),
        Section(title="All trials at once", body=_parallel(results, space), folded=True),
        Section(title="What a further budget would buy", body=_budget(results)),
    ]
    if results.best is not None:
        job = Markup('<pre tabindex="0">{}</pre>').format(best_job(results, space))
        note = "best.yaml, beside this report: yolofleet train takes it."
        sections.append(Section(title="Best job", body=job, note=note, folded=True))
    links = {} if live else {"best.yaml": "../best.yaml", "search.yaml": "../search.yaml"}
    return render_page(f"Search {spec.name}", sections, summary=_sentence(results), links=links, live=live)


def _sentence(results: Results) -> str:
    spec, done = results.spec, sum(entry.completed for entry in results.entries)
    count = f"{len(results.entries)} trial{'' if len(results.entries) == 1 else 's'}, {done} trained to the end"
    if results.best is None:
        return f"{count}; none has a result yet."
    best = results.entry(results.best)
    figures = ", ".join(
        f"{o.metric} {format_value(value)}" for o in spec.objectives if (value := best.value(o.metric)) is not None
    )
    return f"{count}; the best is trial {best.number} ({figures}): {format_values(best.values)}."


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


def _cost_section(results: Results) -> Section | None:
    """Return AP (or the first objective) against each known cost of the trials."""
    if results.paper is not None and len({entry.figures.get("gflops") for entry in results.entries}) == 1:
        return None  # trials of one cost, such as those of an ablation, would lie above one another
    own = [drawn for cost in COSTS if (drawn := _cost_chart(results, cost, with_published=results.paper is not None))]
    body = grid(own)
    if results.paper is None and own:
        among = [_cost_chart(results, cost, with_published=True) for cost in COSTS]
        body += folded(f"Among {COCO}", grid(drawn for drawn in among if drawn))
    return Section(title="AP against cost", body=body, note="The line joins the trials that no other one beats.")


def _cost_chart(results: Results, cost: str, *, with_published: bool) -> Markup:
    metric = AP if any(AP in entry.measured for entry in results.entries) else results.spec.objectives[0].metric
    percent = metric.startswith("val_A")
    scale = 100.0 if percent else 1.0
    done = [
        (entry, at, scale * value)
        for entry in results.entries
        if entry.completed and (value := entry.value(metric)) is not None and (at := _cost(entry, cost)) is not None
    ]
    if not done:
        return Markup("")
    ahead = front(np.array([[value, -at] for _, at, value in done]))
    series = _published(results, cost) if with_published and metric == AP else []
    for name, leads, colour in (("other trials", False, COLOURS[7]), ("front of the trials", True, COLOURS[0])):
        chosen = [found for found, is_ahead in zip(done, ahead, strict=True) if bool(is_ahead) == leads]
        if chosen:
            series.append(
                Series(
                    name=name,
                    points=[(at, value) for _, at, value in chosen],
                    texts=[
                        f"trial {entry.number}: {value:.2f}, {at:.4g} {UNITS[cost]}; {format_values(entry.values)}"
                        for entry, at, value in chosen
                    ],
                    labels=[str(entry.number) for entry, *_ in chosen] if leads else (),
                    colour=colour,
                    shape="steps" if leads else "dots",
                )
            )
    name = f"{metric.removeprefix('val_')}{' in percent' if percent else ''}"
    return chart(series, title=name, x_name=COSTS[cost], x_log=True)


def _cost(entry: Entry, cost: str) -> float | None:
    """Return a cost of a trial in the units of the published ones."""
    if cost == "parameters":
        return entry.figures["parameters"] / 1e6
    return entry.figures.get({"milliseconds": "latency_milliseconds"}.get(cost, cost))


def _published(results: Results, cost: str) -> list[Series]:
    """Return the rows of the space's table, at the cost of their trial where none is printed, or else all models."""
    if results.paper is None:
        return published_series(cost)
    found = []
    for variant in results.paper.variants:
        at = getattr(variant.row, cost, None) or (None if variant.entry is None else _cost(variant.entry, cost))
        if at is not None and (value := variant.printed("ap")) is not None:
            said = f"{variant.label}: {results.paper.format(value)} AP, {at:.4g}"
            found.append((float(at), float(value), said))
    return [
        Series(
            name=f"{results.paper.table} of the paper",
            points=[(x, y) for x, y, _ in found],
            texts=[said for *_, said in found],
            colour=COLOURS[1],
            shape="squares",
        )
    ]


def _parallel(results: Results, space: Space) -> Markup:
    """Return the parallel coordinates of all trials that reported: their parameters, then their objectives."""
    objectives = results.spec.objectives
    shown = [entry for entry in results.entries if all(entry.value(o.metric) is not None for o in objectives)]
    if not shown:
        return text("No trial has reported yet.")
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
    return scrolling("All trials", parallel(axes, names, quality, title="Parameters and objectives of every trial"))


def _figures(results: Results) -> Markup:
    spec = results.spec
    hours = sum(entry.gpu_seconds for entry in results.entries) / 3600
    shown = {
        "trials": str(len(results.entries)),
        "trained to the end": str(sum(entry.completed for entry in results.entries)),
        "refused beforehand": str(results.num_refused),
        "worker hours": f"{hours:.3g}",
        "on the front": str(len(results.front)),
    }
    wanted = ", ".join(f"{o.metric} {'up' if o.goal == 'max' else 'down'}" for o in spec.objectives)
    limits = ", ".join(f"{name} {_bounds(limit)}" for name, limit in spec.constraints.items()) or "none"
    known = {"wanted": wanted, "limits": limits, "algorithm": spec.algorithm.name, "scheduler": spec.scheduler.name}
    known["budget"] = " or ".join(
        f"{value:g} {name.replace('_', ' ')}" for name, value in spec.budget.document().items()
    )
    if results.hypervolume is not None:
        known["hypervolume"] = (
            f"{results.hypervolume:.4g} (how much of the objectives the front covers; more is better)"
        )
    return cards(shown) + facts(known)


def _slices(results: Results, space: Space) -> Markup:
    """Return the first objective of all trials by each of their parameters."""
    objective = results.spec.objectives[0]
    shown = [(entry, value) for entry in results.entries if (value := entry.value(objective.metric)) is not None]
    charts = []
    for name, parameter in list(space.parameters.by_name.items())[:MOST_SLICES]:
        points, texts = [], []
        for entry, value in shown:
            if name not in entry.values:
                continue
            at = parameter.options.index(entry.values[name]) if parameter.choice is not None else entry.values[name]
            points.append((float(at), value))
            texts.append(f"trial {entry.number}: {format_value(value)} at {format_value(entry.values[name])}")
        x_names = [format_value(option) for option in parameter.options] if parameter.choice is not None else []
        at_least = min((x for x, _ in points), default=0.0)
        is_log = not x_names and at_least > 0 and max(x for x, _ in points) > 20 * at_least
        series = [Series(name=name, points=points, texts=texts, shape="dots")]
        short = name.rpartition(".")[2]
        charts.append(chart(series, title=short, x_name=name, x_log=is_log, x_names=x_names))
    return grid(charts)


def _budget(results: Results) -> Markup:
    """Return the best of the first objective by the worker hours spent, and what twice the compute would add."""
    objective = results.spec.objectives[0]
    hours, best, points = 0.0, None, []
    for entry in results.entries:
        hours += entry.gpu_seconds / 3600
        value = entry.value(objective.metric)
        if entry.completed and value is not None:
            best = value if best is None or objective.sign * (value - best) > 0 else best
            points.append((hours, best))
    law = results.scaling_law.sentence()
    sentences = [f"{law[0].upper()}{law[1:]}."]
    if len(points) >= 4 and best is not None:
        at, before = points[-1 - len(points) // 4]
        sentences.append(
            f"The last quarter of the trials took {hours - at:.3g} worker hours and changed the best "
            f"{objective.metric} by {best - before:+.4g}."
        )
    title = f"best {objective.metric} by worker hours"
    line = chart([Series(name=objective.metric, points=points)], title=title, x_name="worker hours")
    return text(*sentences) + (grid([line]) if len(points) > 1 else Markup(""))


def _importances(results: Results) -> Markup:
    if results.importances is None:
        return text("Too few trials to tell.")
    rows = [
        [
            entry.parameter,
            Cell(text=f"{entry.share:.0%}", sort=entry.share, share=entry.share),
            Cell(text=format_value(abs(entry.high - entry.low)), sort=abs(entry.high - entry.low)),
        ]
        for entry in results.importances
    ]
    return table(Table(name="Importance", head=("parameter", "share of the variance", "effect"), rows=rows))


def _trial_table(results: Results, pages: Mapping[str, str]) -> Markup:
    """Return all trials, the best by the first objective first."""
    objective = results.spec.objectives[0]
    order = sorted(
        results.entries,
        key=lambda entry: -objective.sign * value if (value := entry.value(objective.metric)) is not None else np.inf,
    )
    head, *lines = entry_rows(results, order)
    rows = []
    for entry, line in zip(order, lines, strict=True):
        page = next((pages[name] for name in entry.runs if name in pages), "")
        number = Cell(text=line[0], sort=entry.number, href=page)
        rows.append([number, line[1], *map(text_cell, line[2:-1]), entry.state])
    marked = [number for number, entry in enumerate(order) if entry.number in results.front]
    return table(Table(name="Trials", head=head, rows=rows, marked=marked))


def _bounds(limit: Any) -> str:
    parts = [f"at least {limit.min:g}"] if limit.min is not None else []
    return " and ".join([*parts, *([f"at most {limit.max:g}"] if limit.max is not None else [])])
