"""Charts as inline SVG that the page's script reads: values on hover and by arrow keys, series to switch.

The SVG is stretched over its frame while lines keep their width, and names and ticks are text beside it: so a chart is
as wide as there is room, and its text as large on a phone as on a screen. Without a script it is a chart all the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

from yolofleet.reports.axes import Ends, ends_of, inside, linear_ticks, log_ticks, share_along, tick_text, with_margin

Point = tuple[float, float]

SIDE = 1000
"""Of the drawing, in its own units."""
LABEL_SHARE = (0.08, 0.07)
"""Of the width and the height of a chart, that the name of a point takes."""
MOST_POINTS = 400
"""Of a series; more are thinned out, for no screen shows them."""
COLOURS = tuple(f"var(--s{number})" for number in range(8))
"""Of series, by their number; each stands out from the page in light and in dark."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one kind.

    Attributes:
        name: In the legend; series of the same name are switched one by one.
        points: (x, y); of a line by growing x.
        colour: Any CSS colour.
        shape: A line, or marks; ``steps`` is a line along a front, with marks.
        texts: What is said of each point, on charts of marks.
        labels: What is written beside each point; none, or one a point.
        is_shown: Whether it is seen before it is switched on.
    """

    name: str
    points: Sequence[Point]
    colour: str = COLOURS[0]
    shape: Literal["line", "dots", "squares", "steps"] = "line"
    texts: Sequence[str] = ()
    labels: Sequence[str] = ()
    is_shown: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Something that happened, as a vertical line."""

    x: float
    text: str
    colour: str = COLOURS[7]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One vertical line of parallel coordinates.

    Attributes:
        name: Below it.
        positions: Position of each trial on it, 0 (bottom) to 1 (top); None where the trial has no value.
        ticks: (position, text) of its marks.
    """

    name: str
    positions: Sequence[float | None]
    ticks: Sequence[tuple[float, str]]


def chart(
    series: Sequence[Series],
    *,
    title: str,
    x_name: str,
    x_range: Ends | None = None,
    y_range: Ends | None = None,
    x_log: bool = False,
    y_log: bool = False,
    x_names: Sequence[str] = (),
    marks: Sequence[Mark] = (),
    group: str = "",
    small: bool = False,
) -> Markup:
    """Draw series over common axes.

    Args:
        series: The last one lies on top. What is not finite, or not positive on a logarithmic axis, is left out.
        title: Above it; it says what the vertical axis shows.
        x_name: What the horizontal axis shows.
        x_range: Ends of the horizontal axis; None: those of the data.
        y_range: The same for the vertical axis.
        x_log: Whether the horizontal axis is logarithmic.
        y_log: Whether the vertical axis is.
        x_names: Names of the whole numbers on the horizontal axis, from 0, where it shows no quantity.
        marks: Vertical lines.
        group: Charts of one group share the line that follows the pointer.
        small: One of many: without a legend.

    Returns:
        A figure; empty without any point.
    """
    kept = [[_clean(entry, index, x_log, y_log) for index in _kept(entry, x_log, y_log)] for entry in series]
    xs = [x for points in kept for x, *_ in points]
    ys = [y for points in kept for _, y, _ in points]
    if not xs:
        return Markup("")
    is_line = all(entry.shape == "line" for entry in series)
    low, high = x_range or (ends_of(xs, x_log) if is_line else with_margin(ends_of(xs, x_log), x_log))
    bottom, top = y_range or (ends_of(ys, y_log) if is_line and not y_log else with_margin(ends_of(ys, y_log), y_log))
    y_ticks = log_ticks(bottom, top) if y_log else linear_ticks(bottom, top, 2 if small else 4)
    if not y_log and is_line:
        bottom, top = min(bottom, y_ticks[0]), max(top, y_ticks[-1])
    x_ticks = log_ticks(low, high) if x_log else inside(linear_ticks(low, high, 2 if small else 5), low, high)
    if not x_log and all(float(x).is_integer() for x in (low, high, *xs)):  # a count, such as steps
        x_ticks = [tick for tick in x_ticks if float(tick).is_integer()]

    def across(x: float) -> float:
        return share_along(x, low, high, x_log)

    def up(y: float) -> float:
        return share_along(y, bottom, top, y_log)

    drawn = [
        *(_line("grid", (0, 1), (up(y), up(y))) for y in inside(y_ticks, bottom, top)),
        *(_line("mark", (across(mark.x), across(mark.x)), (0, 1), mark.colour) for mark in marks),
    ]
    names: list[Markup] = []
    for number, (entry, points) in enumerate(zip(series, kept, strict=True)):
        placed = [(across(x), up(y)) for x, y, _ in points]
        drawn.append(_drawing(number, entry, placed))
        if entry.labels:
            said = [entry.labels[index] for index in _kept(entry, x_log, y_log)]
            names += _labels(placed, said, is_above=entry.shape == "steps")
    data = {
        "kind": "lines" if is_line else "points",
        "x": [low, high],
        "y": [bottom, top],
        "xlog": x_log,
        "ylog": y_log,
        "xn": x_name,
        "series": [
            {"n": entry.name, "c": entry.colour, "off": not entry.is_shown, "p": [[x, y] for x, y, _ in points]}
            | ({} if is_line else {"t": [said for *_, said in points]})
            for entry, points in zip(series, kept, strict=True)
        ],
        "marks": [[mark.x, mark.text, mark.colour] for mark in marks],
    }
    ticks = [_tick("y", up(y), tick_text(y)) for y in inside(y_ticks, bottom, top)]
    if x_names:
        ticks += [_tick("x", across(x), name[:14]) for x, name in enumerate(x_names) if low <= x <= high]
    else:
        ticks += [_tick("x", across(x), tick_text(x)) for x in x_ticks]
    legend = Markup("") if small or len(series) < 2 else _legend(series)
    axis = Markup("") if small else Markup('<div class="axis">{}</div>').format(x_name)
    return _figure(title, data, legend, [*drawn], [*ticks, *names, axis], group)


def parallel(axes: Sequence[Axis], names: Sequence[str], quality: Sequence[float], *, title: str) -> Markup:
    """Draw one line a trial through all axes, the best trials on top.

    Args:
        axes: The axes, from left to right.
        names: What is said of each trial.
        quality: Rank of each trial, 0 (worst) to 1 (best).
        title: Above it.
    """
    order = sorted(range(len(names)), key=lambda index: quality[index])
    last = max(len(axes) - 1, 1)
    drawn, series = [], []
    for number, trial in enumerate(order):
        points = [(i, p) for i, axis in enumerate(axes) if (p := axis.positions[trial]) is not None]
        is_best = quality[trial] >= 0.8
        colour = COLOURS[0] if is_best else COLOURS[7]
        drawn.append(
            _polyline(number, [(i / last, p) for i, p in points], colour, f"opacity:{0.3 + 0.6 * quality[trial]:.2f}")
        )
        series.append({"n": names[trial], "c": colour, "p": points})
    drawn += [_line("grid", (i / last, i / last), (0, 1)) for i in range(len(axes))]
    texts = [_tick("x", i / last, axis.name) for i, axis in enumerate(axes)]
    texts += [
        Markup('<span class="tick in" style="left:{:.2f}%;bottom:{:.2f}%">{}</span>').format(
            100 * i / last, 100 * at, said
        )
        for i, axis in enumerate(axes)
        for at, said in axis.ticks
    ]
    ends = {"x": [0, last], "y": [0, 1], "xlog": False, "ylog": False, "xn": ""}
    data = {"kind": "paths", **ends, "series": series, "marks": []}
    wide = Markup('<div style="min-width:{}px;padding:4px 70px 0 10px">{}</div>')
    return wide.format(120 * len(axes), _figure(title, data, Markup(""), drawn, texts, ""))


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most so many of the points, evenly chosen, both ends among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def _kept(entry: Series, x_log: bool, y_log: bool) -> list[int]:
    return [
        index
        for index, (x, y) in enumerate(entry.points)
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not x_log) and (y > 0 or not y_log)
    ]


def _clean(entry: Series, index: int, x_log: bool, y_log: bool) -> tuple[float, float, str]:
    x, y = entry.points[index]
    said = entry.texts[index] if entry.texts else f"{entry.name}: {tick_text(x)}, {tick_text(y)}"
    return float(f"{x:.7g}"), float(f"{y:.5g}"), said


def _figure(
    title: str, data: object, legend: Markup, drawn: Sequence[Markup], texts: Sequence[Markup], group: str
) -> Markup:
    return Markup(
        '<figure class="chart" data-group="{}" aria-label="{}"><figcaption>{}</figcaption>{}'
        '<div class="plot" tabindex="0" role="img" aria-label="{}; arrow keys read the values">'
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>{}</div>'
        '<script type="application/json">{}</script></figure>'
    ).format(
        group,
        title,
        title,
        legend,
        title,
        SIDE,
        SIDE,
        Markup("").join(drawn),
        Markup("").join(texts),
        Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")),
    )


def _legend(series: Sequence[Series]) -> Markup:
    kinds = {"line": "", "steps": "dot", "dots": "dot", "squares": "square"}
    buttons = (
        Markup(
            '<button type="button" aria-pressed="{}" data-series="{}">'
            '<i class="{}" style="background:{}"></i>{}</button>'
        ).format(str(entry.is_shown).lower(), number, kinds[entry.shape], entry.colour, entry.name)
        for number, entry in enumerate(series)
    )
    return Markup('<div class="legend">{}</div>').format(Markup("").join(buttons))


def _drawing(number: int, entry: Series, placed: Sequence[Point]) -> Markup:
    hidden = "" if entry.is_shown else "display:none"
    if entry.shape == "line":
        if len(placed) == 1:
            return _dots(number, placed, "dot", entry)
        return _polyline(number, placed, entry.colour, hidden, is_hidden=not entry.is_shown)
    dots = _dots(number, placed, "square" if entry.shape == "squares" else "dot", entry)
    if entry.shape != "steps" or len(placed) < 2:
        return dots
    corners = [sorted(placed)[0]]
    for before, after in pairwise(sorted(placed)):
        corners += [(after[0], before[1]), after]
    return _polyline(number, corners, entry.colour, hidden, is_hidden=not entry.is_shown) + dots


def _dots(number: int, placed: Sequence[Point], kind: str, entry: Series) -> Markup:
    path = "".join(f"M{SIDE * x:.1f} {SIDE * (1 - y):.1f}h0" for x, y in placed)
    hidden = Markup("") if entry.is_shown else Markup(" hidden")
    return Markup('<path class="{}" data-series="{}" d="{}" style="stroke:{}"{}/>').format(
        kind, number, path, entry.colour, hidden
    )


def _polyline(number: int, placed: Sequence[Point], colour: str, style: str = "", *, is_hidden: bool = False) -> Markup:
    points = " ".join(f"{SIDE * x:.1f},{SIDE * (1 - y):.1f}" for x, y in placed)
    hidden = Markup(" hidden") if is_hidden else Markup("")
    return Markup('<polyline class="line" data-series="{}" points="{}" style="stroke:{};{}"{}/>').format(
        number, points, colour, "" if is_hidden else style, hidden
    )


def _line(kind: str, xs: Ends, ys: Ends, colour: str = "") -> Markup:
    style = Markup(' style="stroke:{}"').format(colour) if colour else Markup("")
    ends = (SIDE * xs[0], SIDE * xs[1], SIDE * (1 - ys[0]), SIDE * (1 - ys[1]))
    return Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"{}/>').format(kind, *ends, style)


def _tick(axis: str, at: float, said: str) -> Markup:
    side = "bottom" if axis == "y" else "left"
    return Markup('<span class="tick {}" style="{}:{:.2f}%">{}</span>').format(axis, side, 100 * at, said)


def _labels(placed: Sequence[Point], said: Sequence[str], *, is_above: bool) -> Iterator[Markup]:
    """Yield the names beside points, without those that would cover another; the pointer still tells them.

    A line along a front leaves the room above its points free.
    """
    taken: list[Point] = []
    for at, name in zip(placed, said, strict=True):
        if name and not any(abs(at[0] - x) < LABEL_SHARE[0] and abs(at[1] - y) < LABEL_SHARE[1] for x, y in taken):
            taken.append(at)
            yield _label(at, name, is_above)


def _label(at: Point, said: str, is_above: bool) -> Markup:
    side = " above" if is_above else " left" if at[0] > 0.8 else ""
    return Markup('<span class="label{}" style="left:{:.2f}%;top:{:.2f}%">{}</span>').format(
        side, 100 * at[0], 100 * (1 - at[1]), said
    )
