"""The comparison with a table of the paper as lines of text and as a section of the report, its two orders drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from html import escape

from yolofleet.core.text import and_more, plural
from yolofleet.evaluation.published import FIGURES
from yolofleet.reports.page import Cell, Markup, Section, Table, scrolling, text, text_cell
from yolofleet.reports.page import table as table_of
from yolofleet.search.paper_table import PaperTable, Variant

WIDTH = 760
SOFT = "var(--soft)"
SAME, MOVED = "var(--s0)", "var(--s1)"
LEFT_END, RIGHT_START = 215, 330
"""Where the texts of the left order end, and those of the right one begin."""
LINE_LENGTH = 78
MOST_PAIRS = 4
KINDS = {"alike": "as in the paper", "opposite": "the other way", "unclear": "not distinguished"}
Line = tuple[str, list[str]]
"""The head of a line and its cells."""


def paper_lines(table: PaperTable) -> list[str]:
    """Return the comparison as lines of at most 80 columns."""
    lines = [("", _headings(table))]
    for variant in table.variants:
        lines += [(variant.label, []), *((f"  {head}", cells) for head, cells in _lines_of(table, variant))]
    if counts := list(_counts(table)):
        lines += [("pairs of rows ranked", []), *((f"  {head}", cells) for head, cells in counts)]
    widths = [max(len(cells[column]) for _, cells in lines if cells) for column in range(len(lines[0][1]))]
    first = max(len(head) for head, cells in lines if cells)
    shown = [
        (f"{head:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))).rstrip()
        if cells
        else head
        for head, cells in lines
    ]
    remarks = [line for text in _remarks(table) for line in textwrap.wrap(text, LINE_LENGTH)]
    return [f"{table.table} of the paper, AP in percent:", *(f"  {line}" for line in (*shown, *remarks))]


def paper_section(table: PaperTable) -> Section:
    """Return the comparison as a section of a page."""
    rows: list[list[Cell | str]] = []
    groups, marked = {}, []
    for variant in table.variants:
        groups[len(rows)] = variant.label
        for kind, cells in _lines_of(table, variant):
            if kind == "here":
                marked.append(len(rows))
            rows.append([kind, *map(text_cell, cells)])
    if counts := list(_counts(table)):
        groups[len(rows)] = "pairs of rows ranked"
        rows += [[name, *map(text_cell, cells)] for name, cells in counts]
    head = ("", *_headings(table))
    shown = table_of(Table(name=table.table, head=head, rows=rows, marked=marked, groups=groups))
    return Section(
        title=f"{table.table} of the paper",
        note="AP in percent, parameters and FLOPs of the deployed form.",
        body=_chart(table) + shown + text(*_remarks(table)),
    )


def _headings(table: PaperTable) -> list[str]:
    return [*(FIGURES[figure][0] for figure in table.figures), "#Param", "FLOPs"]


def _lines_of(table: PaperTable, variant: Variant) -> Iterator[Line]:
    """Yield the lines of a variant: the paper's, ours, and the spread over the seeds."""
    if variant.row is not None:
        figures = [table.format(variant.printed(figure)) for figure in table.figures]
        yield "paper", [*figures, _cost(variant.row.parameters, "M"), _cost(variant.row.gflops, "G")]
    if variant.entry is not None:
        known = variant.entry.figures
        parameters, gflops = known.get("parameters"), known.get("gflops_with_bias", known.get("gflops"))
        cost = [_cost(None if parameters is None else parameters / 1e6, "M"), _cost(gflops, "G")]
        yield "here", [*(table.format(variant.measured(figure)) for figure in table.figures), *cost]
    spreads = [variant.spread(figure) for figure in table.figures]
    if any(spread is not None for spread in spreads):
        yield "±", [*map(table.format, spreads), "", ""]


def _cost(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.1f}{unit}"


def _counts(table: PaperTable) -> Iterator[Line]:
    """Yield how many pairs of rows are ranked alike, by each figure."""
    orders = list(table.orders.values())
    if any(order.num_pairs for order in orders):
        for kind, name in KINDS.items():
            yield name, [*(str(len(getattr(order, kind))) for order in orders), "", ""]


def _remarks(table: PaperTable) -> Iterator[str]:
    """Yield sentences on the order of the rows, and the note of the space."""
    if (order := table.orders.get("ap")) is not None and order.num_pairs:
        yield (
            f"By AP the paper ranks {plural(order.num_pairs, 'pair')} of rows. Here "
            f"{plural(len(order.alike), 'of them is', 'of them are')} ranked alike, {len(order.opposite)} the other "
            f"way, and {len(order.unclear)} not distinguished."
        )
        if order.opposite:
            pairs = [f"{worse} above {better}" for better, worse in order.opposite]
            yield f"The other way: {and_more(pairs, MOST_PAIRS, separator='; ')}."
    if (above := _above_the_first(table)) is not None:
        yield above
    if table.seeds == 1:
        yield "With one seed, chance and effect cannot be distinguished. Run the space with repeats=3 for the spread."
    else:
        yield (
            f"Means of {table.seeds} seeds, ± their standard deviation. Two means are distinguished if they differ "
            f"by at least twice the standard error of their difference."
        )
    if table.note:
        yield table.note


def _above_the_first(table: PaperTable) -> str | None:
    """Return how many rows without a counterpart lie above the first row, in the paper and here."""
    first, *others = table.variants
    printed = [value for v in others if v.entry is None and (value := v.printed("ap")) is not None]
    measured = [value for v in others if v.row is None and (value := v.measured("ap")) is not None]
    bases = first.printed("ap"), first.measured("ap")
    if not printed or not measured or bases[0] is None or bases[1] is None:
        return None
    here = sum(value > bases[1] for value in measured)
    return (
        f"Rows without a counterpart that lie above {first.label} by AP: in the paper "
        f"{sum(value > bases[0] for value in printed)} of {len(printed)}, here {here} of {len(measured)}."
    )


def _chart(table: PaperTable) -> Markup:
    """Return the order of the rows by AP, in the paper and here; empty before two of them are measured."""
    printed = {variant.label: value for variant in table.variants if (value := variant.printed("ap")) is not None}
    measured = {variant.label: value for variant in table.variants if (value := variant.measured("ap")) is not None}
    if len(measured) < 2:
        return Markup("")
    spreads = {v.label: f" ± {table.format(spread)}" for v in table.variants if (spread := v.spread("ap")) is not None}
    left = [(label, table.format(printed[label])) for label in sorted(printed, key=lambda label: -printed[label])]
    right = [
        (label, table.format(measured[label]) + spreads.get(label, ""))
        for label in sorted(measured, key=lambda label: -measured[label])
    ]
    chart = order_chart(left, right, left_name="paper", right_name="here")
    return scrolling("order of the rows", Markup('<div class="order-chart">{}</div>').format(chart))


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
