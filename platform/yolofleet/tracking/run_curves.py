"""The curves of a run over its steps, on common axes, with what happened to it as vertical lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from yolofleet.reports.charts import COLOURS, Mark, Series, chart, thin
from yolofleet.reports.page import Markup, facts, grid, text
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.run_record import RunRecord

LOSSES = ("loss", "loss_box", "loss_objectness", "loss_classification")
AP = ("val_AP", "val_AP50", "val_AP75")
CHARTS: tuple[tuple[str, Sequence[str], bool], ...] = (
    ("AP", AP, False),
    ("loss", LOSSES, False),
    ("validation loss", [f"val_{key}" for key in LOSSES], False),
    ("AP by size of the objects", ("val_AP_small", "val_AP_medium", "val_AP_large"), False),
    ("average recall", ("val_AR_1", "val_AR_10", "val_AR_100"), False),
    ("learning rate", ("learning_rate",), False),
    ("gradient norm", ("gradient_norm",), True),
    ("images a second", ("samples_per_second",), False),
    ("share of the time spent waiting for data", ("data_wait_share",), False),
    ("momentum", ("momentum",), False),
)
"""Title, keys of the metrics, and whether the axis is logarithmic where the values differ much."""
WIDE = 30.0
"""Values whose ends differ by this factor are drawn on a logarithmic axis, where the chart allows it."""
LARGEST = 1e100
MOST_MARKS = 300
"""The newest ones; more would hide the curves."""
KINDS = {
    "failure": ("failure", "reached", COLOURS[1]),
    "start": ("workers started again", "step", COLOURS[7]),
    "left": ("saved and left", "step", COLOURS[4]),
    "resize": ("another number of workers", "reached", COLOURS[5]),
    "rolled_back": ("rolled back", "to_step", COLOURS[3]),
    "stopped": ("stopped", "step", COLOURS[4]),
}
"""Kinds of events that are marked: what is said, the field with the step, the colour."""


def curves(record: RunRecord) -> Markup:
    """Return all curves of a run, each over all of its steps so far."""
    if len({row["step"] for row in record.rows if isinstance(row.get("step"), int)}) == 1:
        return _figures_of_one_step(record.rows)
    marks = list(_marks(record.events))
    x_range = (0.0, max(float(record.step), 1.0, *(mark.x for mark in marks)))  # a failure came after the last row
    left_out, marks = len(marks) - MOST_MARKS, marks[-MOST_MARKS:]
    charts = []
    for title, keys, may_be_log in CHARTS:
        lines = [
            Series(name=_name(key), points=thin(found), colour=COLOURS[number])
            for number, key in enumerate(keys)
            if (found := _points(record.rows, key))
        ]
        values = [y for line in lines for _, y in line.points if y > 0]
        is_log = may_be_log and bool(values) and max(values) > WIDE * min(values)
        if lines:
            charts.append(
                chart(lines, title=title, x_name="step", x_range=x_range, y_log=is_log, marks=marks, group="steps")
            )
    if not charts:
        return text("No step has been reported yet.")
    happened = sorted({mark.text.partition(":")[0]: mark.colour for mark in marks}.items())
    happened += [(f"{left_out:,} earlier ones are not drawn", "none")] if left_out > 0 else []
    legend = Markup("").join(
        Markup('<span><i style="background:{}"></i>{}</span>').format(colour, said) for said, colour in happened
    )
    return (Markup('<div class="legend">{}</div>').format(legend) if happened else Markup("")) + grid(charts)


def _figures_of_one_step(rows: Sequence[Row]) -> Markup:
    """Return in words what curves of one point would show."""
    shown = {}
    for title, keys, _ in CHARTS:
        known = [(_name(key), found[-1][1]) for key in keys if (found := _points(rows, key))]
        parts = (f"{value:.4g}" if len(keys) == 1 else f"{name}: {value:.4g}" for name, value in known)
        shown[title] = ", ".join(parts)
    return facts(shown)


def _marks(events: Sequence[Row]) -> Iterator[Mark]:
    """Yield what happened to a run; its first start is nothing special."""
    started = False
    for event in events:
        kind = str(event.get("kind"))
        if kind not in KINDS or (kind == "start" and not started):
            started = started or kind == "start"
            continue
        said, field, colour = KINDS[kind]
        if isinstance(step := event.get(field), int):
            reason = str(event.get("reason") or "").strip()[:120]
            yield Mark(x=step, text=f"{said}{f': {reason}' if reason else ''}", colour=colour)


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    return [
        (float(row["step"]), float(row[key]))
        for row in rows
        if isinstance(row.get("step"), int) and _has_axis(row.get(key))
    ]


def _has_axis(value: object) -> bool:
    """Return whether a value is a number with which an axis can be computed."""
    return isinstance(value, int | float) and (value == 0 or 1 / LARGEST < abs(value) < LARGEST)


def _name(key: str) -> str:
    short = key.removeprefix("val_")
    return "total" if short == "loss" else short.removeprefix("loss_").replace("_", " ")
