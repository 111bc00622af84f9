"""Two orders of the same things side by side, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

WIDTH = 760
SOFT = "var(--soft)"
SAME, MOVED = "var(--s0)", "var(--s1)"
LEFT_END, RIGHT_START = 215, 330
"""Where the texts of the left order end, and those of the right one begin."""


def order_chart(
    left: Sequence[tuple[str, str]], right: Sequence[tuple[str, str]], *, left_name: str, right_name: str
) -> Markup:
    """Draw two orders of the same things side by side, best on top, a line joining what both hold.

    Args:
        left: Names with the value that orders them, as text.
        right: The same of the other order.
        left_name: What the left order is.
        right_name: What the right order is.
    """
    height = 60 + 28 * max(len(left), len(right))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" class="order" role="img" font-size="13" '
        f'style="fill:{SOFT}" aria-label="{escape(left_name)} and {escape(right_name)}">'
    ]
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
            parts.append(f'<line {ends} style="stroke:{colour}" stroke-width="2"/>')
    for rank, (name, value) in enumerate(right):
        text = f'<tspan font-weight="600">{escape(value)}</tspan> {escape(name)}'
        parts.append(f'<text x="{RIGHT_START}" y="{54 + 28 * rank}">{text}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))
