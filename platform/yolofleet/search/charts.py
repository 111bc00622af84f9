"""The two charts of a search as inline SVG: a scatter of its objectives, and parallel coordinates of its trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 18, 48
SOFT, GRID = "#788391", "#8a94a055"
FRONT, OTHER, PAPER = "#3b7dd8", "#8fa3bd", "#c98b00"


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One point of a scatter chart."""

    x: float
    """Horizontal value."""
    y: float
    """Vertical value."""
    name: str
    """Shown while the pointer rests on it."""
    label: str = ""
    """Written beside it."""


def scatter(trials: Sequence[Dot], front: Sequence[Dot], published: Sequence[Dot], *, x_name: str, y_name: str) -> str:
    """Draw trials, their front joined by steps, and published results behind them.

    Args:
        trials: All trials.
        front: The trials of the front, by growing x.
        published: Published results.
        x_name: Name of the horizontal axis (logarithmic).
        y_name: Name of the vertical axis.
    """
    everything = [dot for dot in (*trials, *front, *published) if dot.x > 0]
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
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{value:g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 15 {middle})"'
    parts.append(f'<text x="15" y="{middle}" {turned}>{escape(y_name)}</text>')
    for dot in published:
        x, y = across(dot.x), down(dot.y)
        parts.append(
            f'<path d="M {x - 4:.1f} {y:.1f} L {x:.1f} {y - 4:.1f} L {x + 4:.1f} {y:.1f} L {x:.1f} {y + 4:.1f} Z" '
            f'fill="none" stroke="{PAPER}" stroke-width="1.3"><title>{escape(dot.name)}</title></path>'
        )
    if len(front) > 1:
        steps = [(front[0].x, front[0].y)]
        for before, after in pairwise(front):
            steps += [(after.x, before.y), (after.x, after.y)]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in steps)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{FRONT}" stroke-width="1.5"/>')
    chosen = {(dot.x, dot.y) for dot in front}
    for dot in (*(dot for dot in trials if (dot.x, dot.y) not in chosen), *front):
        colour = FRONT if (dot.x, dot.y) in chosen else OTHER
        parts.append(
            f'<circle cx="{across(dot.x):.1f}" cy="{down(dot.y):.1f}" r="4.5" fill="{colour}">'
            f"<title>{escape(dot.name)}</title></circle>"
        )
    for dot in front:
        if dot.label:
            parts.append(f'<text x="{across(dot.x) + 7:.1f}" y="{down(dot.y) - 7:.1f}">{escape(dot.label)}</text>')
    parts.append("</svg>")
    legend = [(FRONT, "front"), (OTHER, "other trials")]
    if published:
        legend.append((PAPER, "published"))
    spans = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for colour, name in legend)
    return f'{"".join(parts)}<p class="legend">{spans}</p>'


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One vertical line of a parallel-coordinates chart."""

    name: str
    positions: Sequence[float | None]
    """Position of each trial on it, 0 (bottom) to 1 (top); None where the trial has no value."""
    ticks: Sequence[tuple[float, str]]
    """(position, text) of its marks."""


def parallel_coordinates(axes: Sequence[Axis], names: Sequence[str], quality: Sequence[float]) -> str:
    """Draw one line a trial through all axes, the best trials dark and on top.

    Args:
        axes: The axes, from left to right.
        names: Text of each trial, shown while the pointer rests on its line.
        quality: Rank of each trial, 0 (worst) to 1 (best).
    """
    width = max(WIDTH, 150 * (len(axes) - 1) + 160)
    gap = (width - 160) / max(len(axes) - 1, 1)
    bottom, height = HEIGHT - 40, HEIGHT - 90
    parts = [f'<svg viewBox="0 0 {width} {HEIGHT}" class="parallel" role="img" font-size="12" fill="{SOFT}">']
    for trial in sorted(range(len(names)), key=lambda index: quality[index]):
        points = " ".join(
            f"{80 + gap * number:.1f},{bottom - position * height:.1f}"
            for number, axis in enumerate(axes)
            if (position := axis.positions[trial]) is not None
        )
        share = quality[trial]
        parts.append(
            f'<polyline class="run" points="{points}" fill="none" stroke="{_shade(share)}" '
            f'stroke-width="{1 + 1.6 * share:.1f}" stroke-opacity="{0.35 + 0.6 * share:.2f}">'
            f"<title>{escape(names[trial])}</title></polyline>"
        )
    for number, axis in enumerate(axes):
        x = 80 + gap * number
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom - height}" y2="{bottom}" stroke="{SOFT}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom - height - 22}" text-anchor="middle">{escape(axis.name)}</text>')
        for position, text in axis.ticks:
            y = bottom - position * height
            parts.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}">{escape(text)}</text>')
    parts.append("</svg>")
    return "".join(parts)


def _shade(share: float) -> str:
    """Return a colour from grey (worst) to blue (best)."""
    worst, best = (158, 168, 180), (32, 92, 190)
    return "#" + "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(worst, best, strict=True))


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
