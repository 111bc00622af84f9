"""Line charts as inline SVG: without script, font or other file, so a page that holds them needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 14, 44  # room around the plot for ticks and names

SOFT, GRID = "#788391", "#8a94a055"  # seen on white and on black


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: Shown in the legend and when the pointer rests on the line.
        points: (x, y) in ascending x.
        colour: Any CSS colour.
        width: Of the line in pixels.
    """

    name: str
    points: Sequence[Point]
    colour: str
    width: float = 1.5


def line_chart(
    series: Sequence[Series],
    *,
    x_name: str,
    y_name: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    most_in_legend: int = 12,
) -> str:
    """Draw lines over common axes.

    Args:
        series: The lines; the last one lies on top. Points that are not finite are left out.
        x_name: What the horizontal axis shows.
        y_name: What the vertical axis shows.
        x_range: Its ends; None: those of the data.
        y_range: The same for the vertical axis.
        most_in_legend: With more lines than this there is no legend (the pointer still names each line).

    Returns:
        An SVG element.
    """
    clean = [[point for point in line.points if all(map(math.isfinite, point))] for line in series]
    x_ticks = _ticks(*(x_range or _ends([x for points in clean for x, _ in points])))
    y_ticks = _ticks(*(y_range or _ends([y for points in clean for _, y in points])))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def to_pixel_x(x: float) -> float:
        return LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * plot_width

    def to_pixel_y(y: float) -> float:
        return TOP + plot_height - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * plot_height

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" role="img" font-size="12" fill="{SOFT}">']
    for tick in y_ticks:
        y = to_pixel_y(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text x="{to_pixel_x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_number(tick)}</text>'
        )
    parts.append(f'<text x="{LEFT + plot_width / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    middle = TOP + plot_height / 2
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y_name)}</text>'
    )
    for line, points in zip(series, clean, strict=True):
        path = " ".join(f"{to_pixel_x(x):.1f},{to_pixel_y(y):.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{escape(line.colour)}" stroke-width="{line.width}" '
            f'stroke-linejoin="round"><title>{escape(line.name)}</title></polyline>'
        )
    parts.append("</svg>")
    if len(series) <= most_in_legend:
        entries = "".join(
            f'<span><i style="background:{escape(line.colour)}"></i>{escape(line.name)}</span>' for line in series
        )
        parts.append(f'<p class="legend">{entries}</p>')
    return "".join(parts)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 1.0)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that hold both ends between them."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{round(value, 6):g}"
