"""Models measured here among the published ones: lines of text, plain values, and a page with charts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from yolofleet.evaluation.published import COSTS, FIGURES, PublishedResult, published_results, published_series
from yolofleet.reports.charts import Series, chart
from yolofleet.reports.page import Markup, Row, Section, Table, bullets, grid, render_page, table, text, text_cell

HEADINGS = tuple(heading for heading, _ in FIGURES.values())
MODEL_WIDTH = 22
WIDTHS = (5, 7, 8, 10, 6, 6, 6, 6)
"""Of the columns of the lines, after the model."""
PUBLISHED = (
    "Published: Tables 1, 2 and 9 of the YOLOv7 paper, on COCO val2017 and (test) test-dev2017; FPS for one image at a "
    "time."
)
MEASURED = (
    "Measured here, each on the named validation set; comparable only on COCO val2017 with the published protocol:"
)
COLUMNS = (
    "px: side of the images. AP and its kin in percent: APS, APM and APL are AP of small, medium and large objects; "
    "test: on COCO test-dev2017, otherwise on a validation set. FPS: one image at a time, on the GPU named."
)
LINE_LENGTH = 80
MOST_LABELS = 3
"""With more models than this their names are not written into the charts."""


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
    yield "YOLOv7-X by precision and IoU threshold of NMS (Table 10):"
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
    ordered = _by_flops(measured)
    head = ("model", "px", "parameters (M)", "GFLOPs", "FPS", *HEADINGS, *(f"{name} test" for name in HEADINGS))
    rows: list[Row] = [
        [entry.model, *(text_cell(cell) for cell in (*_costs(entry), *_figures(entry)))] for entry in ordered
    ]
    marked = [number for number, entry in enumerate(ordered) if isinstance(entry, MeasuredModel)]
    settings: list[Row] = [
        [f"{result.precision}, IoU {result.iou}", text_cell(str(result.ap))]
        for result in published_results()
        if result.precision is not None
    ]
    sections = [
        Section(title="AP against cost", body=grid(_cost_chart(measured, cost) for cost in COSTS)),
        Section(
            title="All models", note=COLUMNS, body=table(Table(name="All models", head=head, rows=rows, marked=marked))
        ),
        Section(
            title="Where the figures come from",
            body=text(PUBLISHED, MEASURED if measured else "") + bullets(_sources(measured)),
        ),
        Section(
            title="YOLOv7-X by precision and IoU threshold of NMS (Table 10)",
            body=table(Table(name="Table 10", head=("setting", "AP"), rows=settings)),
        ),
    ]
    with_ap = [entry for entry in measured if "ap" in entry.figures]
    best = max(with_ap, key=lambda entry: entry.figures["ap"], default=None)
    among = "was measured here" if len(with_ap) == 1 else f"is the best of {len(with_ap)} measured here"
    summary = "" if best is None else (
        f"{best.model} {among}: {best.figures['ap']:.1f} AP (in percent) with {best.parameters:.3g} M parameters and "
        f"{best.gflops:.3g} GFLOPs."
    )  # fmt: skip
    return render_page("Models among the published ones", sections, summary=summary)


def _cost_chart(measured: Sequence[MeasuredModel], cost: str) -> Markup:
    found = [e for e in measured if getattr(e, cost) is not None and "ap" in e.figures]
    few = len(measured) <= MOST_LABELS
    ours = Series(
        name="measured here",
        points=[(getattr(entry, cost), entry.figures["ap"]) for entry in found],
        texts=[f"{entry.model}: {entry.figures['ap']:.1f} AP" for entry in found],
        labels=[entry.model for entry in found] if few else (),
        shape="dots",
    )
    series = [*published_series(cost), *([ours] if found else [])]
    return chart(
        series, title=f"AP in percent against {COSTS[cost].partition(' (')[0]}", x_name=COSTS[cost], x_log=True
    )


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
    return size, _digits(entry.parameters), _digits(entry.gflops), speed


def _figures(entry: Model) -> list[str]:
    """Return the six figures on the validation set, and the six on test-dev, as cells."""
    if isinstance(entry, PublishedResult):
        return [_cell(getattr(entry, name)) for suffix in ("", "_test") for name in (f"{n}{suffix}" for n in FIGURES)]
    return [
        *(f"{entry.figures[name]:.1f}" if name in entry.figures else "-" for name in FIGURES),
        *["-"] * len(FIGURES),
    ]


def _digits(value: float) -> str:
    """Return a number with a decimal, and a small one with two digits."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _cell(value: Decimal | None) -> str:
    return "-" if value is None else str(value)


def _line(mark: str, model: str, cells: Sequence[str]) -> str:
    name = model if len(model) <= MODEL_WIDTH else f"...{model[3 - MODEL_WIDTH :]}"
    return f"{mark:2}{name:{MODEL_WIDTH}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, WIDTHS, strict=True))
