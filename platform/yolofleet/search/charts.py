"""Charts of a search as inline SVG: parallel coordinates of its trials, and two orders of the same things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 430
SOFT = "#788391"
SAME, MOVED = "#3b7dd8", "#e4572e"
LEFT_END, RIGHT_START = 215, 330
"""Where the texts of the left order end, and those of the right one begin."""


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


def order_chart(
    left: Sequence[tuple[str, str]], right: Sequence[tuple[str, str]], *, left_name: str, right_name: str
) -> str:
    """Draw two orders of the same things side by side, best on top, a line joining what both hold.

    Args:
        left: Names with the value that orders them, as text.
        right: The same of the other order.
        left_name: What the left order is.
        right_name: What the right order is.
    """
    height = 60 + 28 * max(len(left), len(right))
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" class="order" role="img" font-size="13" fill="{SOFT}">']
    parts.append(f'<text x="{LEFT_END}" y="22" text-anchor="end">{escape(left_name)}</text>')
    parts.append(f'<text x="{RIGHT_START}" y="22">{escape(right_name)}</text>')
    ranks = {name: rank for rank, (name, _) in enumerate(right)}
    common = [name for name, _ in left if name in ranks]
    sorted_right = sorted(common, key=lambda name: ranks[name])
    for rank, (name, value) in enumerate(left):
        y = 54 + 28 * rank
        text = f'{escape(name)} <tspan font-weight="600">{escape(value)}</tspan>'
        parts.append(f'<text x="{LEFT_END}" y="{y}" text-anchor="end">{text}</text>')
        if name in ranks:
            colour = SAME if common.index(name) == sorted_right.index(name) else MOVED
            ends = f'x1="{LEFT_END + 10}" y1="{y - 4}" x2="{RIGHT_START - 10}" y2="{50 + 28 * ranks[name]}"'
            parts.append(f'<line {ends} stroke="{colour}" stroke-width="2"/>')
    for rank, (name, value) in enumerate(right):
        text = f'<tspan font-weight="600">{escape(value)}</tspan> {escape(name)}'
        parts.append(f'<text x="{RIGHT_START}" y="{54 + 28 * rank}">{text}</text>')
    parts.append("</svg>")
    return "".join(parts)


def _shade(share: float) -> str:
    """Return a colour from grey (worst) to blue (best)."""
    worst, best = (158, 168, 180), (32, 92, 190)
    return "#" + "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(worst, best, strict=True))
