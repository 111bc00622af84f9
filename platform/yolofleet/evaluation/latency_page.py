"""Timings of models as lines, as plain values, and as a page with AP against latency (paper Figures 1 and 2)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from yolofleet.evaluation.latency import WARM_UP_PASSES, BenchmarkedModel, Environment, Timing
from yolofleet.evaluation.published import COSTS, published_series
from yolofleet.reports.charts import COLOURS, Series, chart
from yolofleet.reports.page import Markup, Row, Section, Table, facts, grid, render_page, table, text, text_cell

HEADINGS = ("px", "format", "type", "batch", "passes", "p50 ms", "p90 ms", "p99 ms", "FPS", "AP")
WIDTHS = (6, 7, 6, 6, 7, 9, 9, 9, 8, 6)
MODEL_WIDTH = 22
LINE_LENGTH = 95
METHOD = (
    "A pass is only the network, from images in memory to decoded boxes; each one ends before the next begins. "
    f"The first {WARM_UP_PASSES} are not counted. FPS: images a second by the median pass."
)
PAPERS = "AP marked * is from the paper; it was not measured here."
UNEVALUATED = "Models without AP were not evaluated at this image size and are in no chart."
NO_SINGLE = "The chart shows single images: measure with --batch 1, too."


def benchmark_document(environment: Environment, models: Sequence[BenchmarkedModel]) -> dict[str, Any]:
    """Return everything as plain JSON values."""
    return {
        "environment": {**vars(environment)},
        "method": METHOD,
        "models": [model.document() for model in models],
    }


def benchmark_lines(environment: Environment, models: Sequence[BenchmarkedModel]) -> Iterator[str]:
    """Yield the environment, and a line for each timing."""
    yield str(environment)
    yield ""
    yield _line("model", HEADINGS)
    for model in models:
        yield from (_line(model.model, _cells(model, timing)) for timing in model.timings)
    yield ""
    for sentence in _notes(models):
        yield from textwrap.wrap(sentence, LINE_LENGTH)


def render_benchmark(environment: Environment, models: Sequence[BenchmarkedModel]) -> str:
    """Return a page: AP against the latency of a single image among the published models, and all timings."""
    measured = [
        _series("latency here, AP of the paper", COLOURS[7], _points(models, papers=True)),
        _series("measured here", COLOURS[0], _points(models, papers=False)),
    ]
    measured = [entry for entry in measured if entry.points]
    charts = Markup("")
    if measured:
        series = [*published_series("milliseconds"), *measured]
        charts = grid([chart(series, title="AP in percent", x_name=COSTS["milliseconds"], x_log=True)])
    rows: list[Row] = [
        [model.model, *(text_cell(cell) for cell in _cells(model, timing))]
        for model in models
        for timing in model.timings
    ]
    values = {"device": environment.device, "processor": environment.name, "threads": environment.threads}
    sections = [
        Section(title="AP and latency", body=charts),
        Section(title="Timings", body=table(Table(name="Timings", head=("model", *HEADINGS), rows=rows))),
        Section(title="How it was measured", body=facts(values | environment.versions) + text(*_notes(models))),
    ]
    singles = [(t.milliseconds, model.model) for model in models for t in model.timings if t.batch == 1]
    fastest = "takes" if len(singles) == 1 else "is the fastest here:"
    summary = f"{min(singles)[1]} {fastest} {min(singles)[0]:.1f} ms for one image." if singles else ""
    return render_page("Latency of models", sections, summary=summary)


def _series(name: str, colour: str, points: Sequence[tuple[float, float, str, str]]) -> Series:
    return Series(
        name=name,
        points=[(x, y) for x, y, *_ in points],
        texts=[said for *_, said, _ in points],
        labels=[label for *_, label in points],
        colour=colour,
        shape="dots",
    )


def _points(models: Sequence[BenchmarkedModel], *, papers: bool) -> list[tuple[float, float, str, str]]:
    """Return the models whose AP was measured, or is the paper's, by the median time of a single image."""
    one_format = len({timing.format for model in models for timing in model.timings}) == 1
    return [
        (
            timing.milliseconds,
            model.ap,
            f"{model.model} at {model.size} px, {timing.format} {timing.precision}: {model.ap:.1f} AP, "
            f"{timing.milliseconds:.1f} ms, {timing.images_per_second:.1f} FPS",
            model.model if one_format else f"{model.model}, {timing.format}",
        )
        for model in models
        for timing in model.timings
        if timing.batch == 1 and model.ap is not None and (model.evaluated is None) == papers
    ]


def _cells(model: BenchmarkedModel, timing: Timing) -> tuple[str, ...]:
    ap = "-" if model.ap is None else f"{model.ap:.1f}{'*' if model.evaluated is None else ''}"
    shares = (f"{value:.2f}" for value in timing.percentiles.values())
    speed = f"{timing.images_per_second:.1f}"
    return (str(model.size), timing.format, timing.precision, str(timing.batch), str(timing.passes), *shares, speed, ap)


def _notes(models: Sequence[BenchmarkedModel]) -> Iterator[str]:
    yield METHOD
    evaluated = {f"{model.model}: AP on {model.evaluated}" for model in models if model.evaluated is not None}
    yield from sorted(evaluated)
    if any(model.ap is not None and model.evaluated is None for model in models):
        yield PAPERS
    if any(model.ap is None for model in models):
        yield UNEVALUATED
    if not any(timing.batch == 1 for model in models for timing in model.timings):
        yield NO_SINGLE


def _line(model: str, cells: Sequence[str]) -> str:
    name = model if len(model) <= MODEL_WIDTH else f"...{model[3 - MODEL_WIDTH :]}"
    return f"{name:{MODEL_WIDTH}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
