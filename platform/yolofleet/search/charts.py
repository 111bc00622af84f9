"""The charts of a search: trials by cost, by each parameter, by all of them at once."""

from __future__ import annotations

import numpy as np

from yolofleet.evaluation.published import COSTS, published_series
from yolofleet.reports.charts import COLOURS, Axis, Series, chart, parallel
from yolofleet.reports.page import Markup, Section, folded, grid, scrolling
from yolofleet.search.entry import Entry
from yolofleet.search.history import best_first
from yolofleet.search.pareto import front
from yolofleet.search.results import AP, Results, format_value, format_values
from yolofleet.search.space import Space

COCO = "published models: COCO val2017, trained in full"
UNITS = {"gflops": "G", "parameters": "M", "milliseconds": "ms"}
MOST_SLICES = 12
FEWEST_POINTS = 2
"""A chart of one trial shows no more than its line in the table."""


def cost_section(results: Results) -> Section | None:
    """Return AP (or the first objective) against each known cost of the trials."""
    if results.paper is not None and len({entry.figures.get("gflops") for entry in results.entries}) == 1:
        return None  # trials of one cost, such as those of an ablation, would lie above one another
    own = [drawn for cost in COSTS if (drawn := _cost_chart(results, cost, with_published=results.paper is not None))]
    body = grid(own)
    if results.paper is None and own:
        among = [_cost_chart(results, cost, with_published=True) for cost in COSTS]
        body += folded(f"Among {COCO}", grid(drawn for drawn in among if drawn))
    return Section(
        title="AP against cost", body=body, note="The line joins the trials that no other trial beats (the front)."
    )


def _cost_chart(results: Results, cost: str, *, with_published: bool) -> Markup:
    metric = AP if any(AP in entry.measured for entry in results.entries) else results.spec.objectives[0].metric
    series = _published(results, cost) if with_published and metric == AP else []
    scale, decimals = (100.0, 2) if series else (1.0, 4)  # papers print AP in percent
    done = [
        (entry, at, scale * value)
        for entry in results.entries
        if entry.completed and (value := entry.value(metric)) is not None and (at := _cost(entry, cost)) is not None
    ]
    if not done or len(done) + sum(len(entry.points) for entry in series) < FEWEST_POINTS:
        return Markup("")
    ahead = front(np.array([[value, -at] for _, at, value in done]))
    for name, leads, colour in (("other trials", False, COLOURS[7]), ("front of the trials", True, COLOURS[0])):
        chosen = [found for found, is_ahead in zip(done, ahead, strict=True) if bool(is_ahead) == leads]
        if chosen:
            series.append(
                Series(
                    name=name,
                    points=[(at, value) for _, at, value in chosen],
                    texts=[
                        f"trial {entry.number}: {value:.{decimals}f}, {at:.4g} {UNITS[cost]}; "
                        + format_values(entry.values)
                        for entry, at, value in chosen
                    ],
                    labels=[str(entry.number) for entry, *_ in chosen] if leads else (),
                    colour=colour,
                    shape="steps" if leads else "dots",
                )
            )
    name = f"{metric.removeprefix('val_')}{' in percent' if decimals == 2 else ''}"
    return chart(series, title=name, x_name=COSTS[cost], x_log=True)


def _cost(entry: Entry, cost: str) -> float | None:
    """Return a cost of a trial in the units of the published ones."""
    if cost == "parameters":
        return None if (count := entry.figures.get("parameters")) is None else count / 1e6
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


def parallel_chart(results: Results, space: Space) -> Markup:
    """Return the parallel coordinates of all trials that reported: their parameters, then their objectives."""
    objectives = results.spec.objectives
    shown = [entry for entry in results.entries if all(entry.value(o.metric) is not None for o in objectives)]
    if len(shown) < FEWEST_POINTS:
        return Markup("")
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


def slices(results: Results, space: Space) -> Markup:
    """Return the first objective of all trials by each of their parameters."""
    objective = results.spec.objectives[0]
    shown = [(entry, value) for entry in results.entries if (value := entry.value(objective.metric)) is not None]
    charts: list[Markup] = []
    if len(shown) < FEWEST_POINTS:
        return grid(charts)
    for name, parameter in list(space.parameters.by_name.items())[:MOST_SLICES]:
        points, texts = [], []
        for entry, value in shown:
            if name not in entry.values:
                continue
            at = parameter.options.index(entry.values[name]) if parameter.choice is not None else entry.values[name]
            points.append((float(at), value))
            texts.append(f"trial {entry.number}: {format_value(value)} at {format_value(entry.values[name])}")
        x_names = [format_value(option) for option in parameter.options] if parameter.choice is not None else []
        is_log = parameter.kind in ("log_uniform", "log_integer")
        series = [Series(name=name, points=points, texts=texts, shape="dots")]
        short = name.rpartition(".")[2]
        charts.append(chart(series, title=short, x_name=name, x_log=is_log, x_names=x_names))
    return grid(charts)
