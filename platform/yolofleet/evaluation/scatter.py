"""A scatter chart as inline SVG: AP against a cost, kinds of points apart by colour and mark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 18, 48
LABEL_GAP, CHARACTER_WIDTH = 7, 6.5
SOFT, GRID = "#788391", "#8a94a055"
STYLE = """
.scatter{width:100%;max-width:860px}
@media(max-width:600px){.scatter{font-size:20px}.scatter .label{display:none}}
"""
"""The page that holds a chart needs it: on a phone the text is larger, and points are named by touch alone."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One point."""

    x: float
    """Horizontal value, above 0."""
    y: float
    """Vertical value."""
    name: str
    """Shown while the pointer rests on it."""
    label: str = ""
    """Written beside it."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Points of one kind; later groups lie on top."""

    name: str
    """Its entry in the legend; groups of the same name share one."""
    colour: str
    """Any CSS colour."""
    dots: Sequence[Dot]
    mark: Literal["disc", "diamond"] = "disc"
    line: Literal["none", "straight", "steps"] = "none"
    """How its points are joined, by growing x."""


def scatter(groups: Sequence[Group], *, x_name: str, y_name: str) -> str:
    """Draw groups of points over a logarithmic horizontal axis, with a legend.

    Args:
        groups: The points.
        x_name: Name of the horizontal axis.
        y_name: Name of the vertical axis.
    """
    everything = [dot for group in groups for dot in group.dots]
    x_low, x_high = _ends([math.log10(dot.x) for dot in everything])
    y_low, y_high = _ends([dot.y for dot in everything])

    def across(x: float) -> float:
        return LEFT + (math.log10(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="scatter" role="img" font-size="12" fill="{SOFT}">']
    grid = f'stroke="{GRID}"'
    for tick in _ticks(y_low, y_high):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}" {grid}/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for value in _log_ticks(x_low, x_high):
        x = across(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" {grid}/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{value:g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 15 {middle})"'
    parts.append(f'<text x="15" y="{middle}" {turned}>{escape(y_name)}</text>')
    for group in groups:
        points = [(across(dot.x), down(dot.y)) for dot in group.dots]
        if group.line != "none" and len(points) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in _path(sorted(points), steps=group.line == "steps"))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{group.colour}" stroke-width="1.3"/>')
        for dot, (x, y) in zip(group.dots, points, strict=True):
            shape = _diamond(x, y, group.colour) if group.mark == "diamond" else _disc(x, y, group.colour)
            parts.append(f"{shape}><title>{escape(dot.name)}</title></{shape[1:].partition(' ')[0]}>")
            if dot.label:
                at_edge = x + LABEL_GAP + CHARACTER_WIDTH * len(dot.label) > WIDTH
                at = f'x="{x - LABEL_GAP:.1f}" text-anchor="end"' if at_edge else f'x="{x + LABEL_GAP:.1f}"'
                parts.append(f'<text class="label" {at} y="{y - LABEL_GAP:.1f}">{escape(dot.label)}</text>')
    parts.append("</svg>")
    legend = {group.name: group.colour for group in groups if group.dots}
    names = [f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in legend.items()]
    return f'{"".join(parts)}<p class="legend">{"".join(names)}</p>'


def _path(points: Sequence[tuple[float, float]], *, steps: bool) -> list[tuple[float, float]]:
    """Return the corners of a line through points; steps go across first, then up or down."""
    if not steps:
        return list(points)
    corners = [points[0]]
    for before, after in pairwise(points):
        corners += [(after[0], before[1]), after]
    return corners


def _disc(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"'


def _diamond(x: float, y: float, colour: str) -> str:
    corners = f"M {x - 4:.1f} {y:.1f} L {x:.1f} {y - 4:.1f} L {x + 4:.1f} {y:.1f} L {x:.1f} {y + 4:.1f} Z"
    return f'<path d="{corners}" fill="none" stroke="{colour}" stroke-width="1.3"'


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = (high - low) * 0.06 or max(abs(high) * 0.1, 0.1)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 6
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two powers of ten: few over a wide range, more over a narrow one."""
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        ticks = [
            factor * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for factor in factors
            if low <= math.log10(factor * 10.0**power) <= high
        ]
        if len(ticks) >= 4:
            return ticks
    return ticks
