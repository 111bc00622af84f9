"""Models measured here among the published ones: lines of text, plain values, and a page with charts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from html import escape
from typing import Any

from yolofleet.core.page import render_page
from yolofleet.evaluation import scatter as scatter_chart
from yolofleet.evaluation.published import COSTS, FIGURES, PublishedResult, published_groups, published_results
from yolofleet.evaluation.scatter import Dot, Group, scatter

HERE = "#3b7dd8"
HEADINGS = tuple(heading for heading, _ in FIGURES.values())
MODEL_WIDTH = 22
WIDTHS = (5, 7, 8, 10, 6, 6, 6, 6)
"""Of the columns of the lines, after the model."""
PUBLISHED = (
    "Published: Tables 1, 2 and 9 of the YOLOv7 paper, on COCO val2017 and (test) test-dev2017; FPS for one image at a "
    "time."
)
MEASURED = (
    "Measured here, each on the validation set that is named; comparable where that is COCO val2017, by the published "
    "protocol:"
)
LINE_LENGTH = 80
MOST_LABELS = 3
"""With more models than this their names are not written into the charts."""
STYLE = f"{scatter_chart.STYLE}td{{white-space:nowrap}}tr.front td{{font-weight:600;color:{HERE}}}"


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A model that was evaluated here."""

    model: str
    """Its run, trial or version."""
    source: str
    """Where that is."""
    data: str
    """The validation set."""
    size: int
    """Side of the image in pixels."""
    parameters: float
    """Of the deployed form, in units of 10^6."""
    gflops: float
    """Of the deployed form, in units of 10^9, each bias a multiply-accumulate as in most rows of the paper."""
    figures: Mapping[str, float]
    """AP in percent by the keys of `FIGURES`."""
    protocol: str = "square"
    """By which it was evaluated."""
    milliseconds: float | None = None
    """Time for one image, where it was measured."""
    device: str | None = None
    """Where it was measured."""


def comparison_document(measured: Sequence[MeasuredModel]) -> dict[str, Any]:
    """Return everything as plain JSON values; published numbers are those of the paper."""
    published = [
        {name: float(value) if isinstance(value, Decimal) else value for name, value in asdict(result).items()}
        for result in published_results()
    ]
    return {"measured": [asdict(entry) for entry in measured], "published": published}


def comparison_lines(measured: Sequence[MeasuredModel]) -> Iterator[str]:
    """Yield a line for each model by FLOPs, at most 80 columns, those measured here with a mark in front."""
    yield _line("", "model", ("px", "M", "GFLOPs", "FPS", *HEADINGS[:3], "test"))
    for entry in _by_flops(measured):
        mark = ">" if isinstance(entry, MeasuredModel) else ""
        figures = _figures(entry)
        yield _line(mark, entry.model, (*_costs(entry), *figures[:3], figures[6]))
    yield ""
    yield "YOLOv7-X by precision and threshold of the suppression (Table 10):"
    for result in published_results():
        if result.precision is not None:
            yield f"  {result.precision}, IoU {result.iou}: {result.ap} AP"
    yield ""
    yield from textwrap.wrap(PUBLISHED, LINE_LENGTH)
    if measured:
        yield from textwrap.wrap(MEASURED, LINE_LENGTH)
    yield from (f"> {source}" for source in _sources(measured))


def render_comparison(measured: Sequence[MeasuredModel]) -> str:
    """Return a page: AP against FLOPs, parameters and latency, and a table of all figures."""
    charts, few = [], len(measured) <= MOST_LABELS
    for cost, name in COSTS.items():
        dots = [
            Dot(
                x=at,
                y=entry.figures["ap"],
                name=f"{entry.model}: {entry.figures['ap']:.1f} AP",
                label=entry.model if few else "",
            )
            for entry in measured
            if (at := getattr(entry, cost)) is not None and "ap" in entry.figures
        ]
        groups = [*published_groups(cost), Group(name="measured here", colour=HERE, dots=dots)]
        charts.append(f"<div>{scatter(groups, x_name=name, y_name='AP in percent')}</div>")
    headings = ("model", "px", "M", "GFLOPs", "FPS", *HEADINGS, *(f"{name} test" for name in HEADINGS))
    rows = ["<tr>" + "".join(f"<th>{heading}</th>" for heading in headings) + "</tr>"]
    for entry in _by_flops(measured):
        mark = " class='front'" if isinstance(entry, MeasuredModel) else ""
        cells = (escape(entry.model), *_costs(entry), *_figures(entry))
        rows.append(f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    sources = [f"<li>{escape(source)}</li>" for source in _sources(measured)]
    settings = [
        f"<tr><td>{result.precision}, IoU {result.iou}</td><td>{result.ap}</td></tr>"
        for result in published_results()
        if result.precision is not None
    ]
    parts = [
        f"<p class='soft'>{PUBLISHED}</p>",
        f"<p class='soft'>{MEASURED}</p><ul>{''.join(sources)}</ul>" if measured else "",
        f"<div class='charts'>{''.join(charts)}</div>",
        f"<h2>All models</h2><div class='wide'><table>{''.join(rows)}</table></div>",
        f"<h2>YOLOv7-X by precision and threshold of the suppression (Table 10)</h2><table>{''.join(settings)}</table>",
    ]
    return render_page("Models among the published ones", parts, STYLE)


def _sources(measured: Sequence[MeasuredModel]) -> list[str]:
    """Return where the models come from, once each, and what they were evaluated on and how."""
    return list(dict.fromkeys(f"{entry.source}, on {entry.data}, {entry.protocol} protocol" for entry in measured))


Model = PublishedResult | MeasuredModel


def _by_flops(measured: Sequence[MeasuredModel]) -> list[Model]:
    """Return all models by FLOPs, those without last; Table 10 is apart."""
    models: list[Model] = [result for result in published_results() if result.precision is None]
    return sorted([*models, *measured], key=lambda entry: float(entry.gflops or "inf"))


def _costs(entry: Model) -> tuple[str, str, str, str]:
    """Return image size, parameters, GFLOPs and FPS as cells."""
    size = str(entry.size or "-")
    if isinstance(entry, PublishedResult):
        speed = "-" if entry.fps is None else f"{entry.fps} {entry.gpu}"
        return size, _cell(entry.parameters), _cell(entry.gflops), speed
    speed = "-" if entry.milliseconds is None else f"{1000 / entry.milliseconds:.0f} {entry.device or ''}".rstrip()
    return size, f"{entry.parameters:.1f}", f"{entry.gflops:.1f}", speed


def _figures(entry: Model) -> list[str]:
    """Return the six figures on the validation set, and the six on test-dev, as cells."""
    if isinstance(entry, PublishedResult):
        return [_cell(getattr(entry, name)) for suffix in ("", "_test") for name in (f"{n}{suffix}" for n in FIGURES)]
    return [
        *(f"{entry.figures[name]:.1f}" if name in entry.figures else "-" for name in FIGURES),
        *["-"] * len(FIGURES),
    ]


def _cell(value: Decimal | None) -> str:
    return "-" if value is None else str(value)


def _line(mark: str, model: str, cells: Sequence[str]) -> str:
    name = model if len(model) <= MODEL_WIDTH else f"...{model[3 - MODEL_WIDTH :]}"
    return f"{mark:2}{name:{MODEL_WIDTH}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, WIDTHS, strict=True))
