"""The report of a search: an HTML page, the results as JSON, and the best job as YAML.

Everything is made from the record, so it can be made anew at any time; it replaces the report before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from yolofleet.core.text import plural
from yolofleet.reports.charts import Series, chart
from yolofleet.reports.page import (
    Cell,
    Markup,
    Row,
    Section,
    Table,
    cards,
    facts,
    grid,
    render_page,
    table,
    text,
    text_cell,
)
from yolofleet.search.charts import cost_section, parallel_chart, slices
from yolofleet.search.directory import BEST_KEY, SearchDirectory
from yolofleet.search.paper_report import paper_section
from yolofleet.search.results import Results, entry_rows, format_value, format_values, load_results
from yolofleet.search.space import Space
from yolofleet.specs.yaml_document import write_yaml
from yolofleet.tracking.run_page import write_run_page

PAGE_KEY = "report/index.html"
RESULTS_KEY = "report/results.json"
FRONT_KEY = "report/front.json"


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
        cost_section(results),
        Section(
            title="Trials", body=_trial_table(results, pages), note="The front is in bold." if results.front else ""
        ),
        Section(title="What matters", body=_importances(results), note=_importance_note(results)),
        Section(title="Slices", body=slices(results, space), note=f"{spec.objectives[0].metric} by each parameter."),
        Section(title="All trials at once", body=parallel_chart(results, space), folded=True),
        Section(title="What more budget would bring", body=_budget(results)),
    ]
    if results.best is not None:
        job = Markup('<pre tabindex="0">{}</pre>').format(best_job(results, space))
        note = "best.yaml, beside this report; train it with yolofleet train."
        sections.append(Section(title="Best job", body=job, note=note, folded=True))
    links = {} if live else {"search.yaml": "../search.yaml"}
    if not live and results.best is not None:
        links = {"best.yaml": "../best.yaml", **links}
    return render_page(f"Search {spec.name}", sections, summary=_sentence(results), links=links, live=live)


def _sentence(results: Results) -> str:
    spec, done = results.spec, sum(entry.completed for entry in results.entries)
    if not results.entries:
        return "No trial has begun yet."
    count = f"{plural(len(results.entries), 'trial')}, {done} trained to the end"
    if results.best is None:
        failed = sum(entry.state.startswith("failed") for entry in results.entries)
        return f"{count}{f', {failed} failed' if failed else ''}; no trial has a result yet."
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
        plural(value, name.removesuffix("s").replace("_", " "), form="g")
        for name, value in spec.budget.document().items()
    )
    if results.hypervolume:
        known["hypervolume"] = (
            f"{results.hypervolume:.4g} (how much of the objectives the front covers; more is better)"
        )
    return cards(shown) + facts(known)


def _budget(results: Results) -> Markup:
    """Return the best of the first objective by the worker hours spent, and what twice the compute would add."""
    if results.best is None:
        return Markup("")
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
            f"The last quarter of the trials took {plural(hours - at, 'worker hour', form='.3g')} and changed the best "
            f"{objective.metric} by {best - before:+.4g}."
        )
    title = f"best {objective.metric} by worker hours"
    line = chart([Series(name=objective.metric, points=points)], title=title, x_name="worker hours")
    return text(*sentences) + (grid([line]) if len(points) > 1 else Markup(""))


def _importance_note(results: Results) -> str:
    if results.importances is None:
        return ""
    metric = next(o for o in results.spec.objectives if any(o.metric in e.measured for e in results.entries)).metric
    return (
        f"How much of the variance of {metric} each parameter explains, and how far {metric} is expected to differ "
        "between its best and its worst value (effect)."
    )


def _importances(results: Results) -> Markup:
    if results.importances is None:
        return text("There are too few trials to say.") if results.best is not None else Markup("")
    rows: list[Row] = [
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
    rows: list[Row] = []
    for entry, line in zip(order, lines, strict=True):
        page = next((pages[name] for name in entry.runs if name in pages), "")
        number = Cell(text=line[0], sort=entry.number, href=page)
        rows.append([number, line[1], *map(text_cell, line[2:-1]), entry.state])
    marked = [number for number, entry in enumerate(order) if entry.number in results.front]
    return table(Table(name="Trials", head=head, rows=rows, marked=marked))


def _bounds(limit: Any) -> str:
    parts = [f"at least {limit.min:g}"] if limit.min is not None else []
    return " and ".join([*parts, *([f"at most {limit.max:g}"] if limit.max is not None else [])])
