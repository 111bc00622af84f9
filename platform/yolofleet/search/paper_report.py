"""The comparison with a table of the paper as lines of text and as a section of the report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from html import escape

from yolofleet.core.text import and_more
from yolofleet.evaluation.published import FIGURES
from yolofleet.search.charts import order_chart
from yolofleet.search.paper_table import PaperTable, Variant

LINE_LENGTH = 78
MOST_PAIRS = 4
KINDS = {"alike": "as in the paper", "opposite": "the other way", "unclear": "not distinguished"}
STYLE = """
.paper td,.paper th{padding:3px 9px}.paper tbody th{text-align:left;color:var(--ink);border:0;padding-top:12px}
.paper tbody th span{position:sticky;left:6px}.paper td{border:0}
.paper tr:last-child td{border-bottom:1px solid var(--line)}
.paper td:first-child{color:var(--soft)}.paper td:nth-child(2),.paper th:nth-child(2){text-align:right}
.paper .here td{font-weight:600}.paper .here td:first-child{color:var(--bar)}.paper .spread td{color:var(--soft)}
.order{width:100%;max-width:860px;min-width:640px}
@media(max-width:600px){.paper td,.paper th{padding:3px 6px;font-size:13px}}
"""
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


def paper_section(table: PaperTable) -> str:
    """Return the comparison as a section of a page; it needs `STYLE`."""
    head = "".join(f"<th>{cell}</th>" for cell in ("", *_headings(table)))
    width = len(_headings(table)) + 1
    bodies = []
    for variant in table.variants:
        rows = "".join(_row(kind, cells, kind) for kind, cells in _lines_of(table, variant))
        bodies.append(f"<tbody><tr><th colspan={width}><span>{escape(variant.label)}</span></th></tr>{rows}</tbody>")
    if counts := list(_counts(table)):
        rows = "".join(_row(name, cells) for name, cells in counts)
        bodies.append(f"<tbody><tr><th colspan={width}><span>pairs of rows ranked</span></th></tr>{rows}</tbody>")
    remarks = "".join(f"<p>{escape(text)}</p>" for text in _remarks(table))
    caption = "<p class='soft'>AP in percent, parameters and FLOPs of the deployed form</p>"
    rows = f"<thead><tr>{head}</tr></thead>{''.join(bodies)}"
    return (
        f"<h2>{escape(table.table)} of the paper</h2>{caption}{_chart(table)}"
        f"<div class='wide'><table class='paper'>{rows}</table></div>{remarks}"
    )


def _row(head: str, cells: list[str], kind: str = "") -> str:
    mark = {"here": " class='here'", "±": " class='spread'"}.get(kind, "")
    return f"<tr{mark}><td>{head}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


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
            f"By AP the paper ranks {order.num_pairs} pairs of rows. Here {len(order.alike)} of them are ranked alike, "
            f"{len(order.opposite)} the other way, and {len(order.unclear)} not distinguished."
        )
        if order.opposite:
            pairs = [f"{worse} above {better}" for better, worse in order.opposite]
            yield f"The other way: {and_more(pairs, MOST_PAIRS, separator='; ')}."
    if (above := _above_the_first(table)) is not None:
        yield above
    if table.seeds == 1:
        yield "One seed: chance and effect are not distinguished. Run the space with repeats=3 for the spread."
    else:
        yield (
            f"Means of {table.seeds} seeds, ± their standard deviation. Two means differ from twice the "
            "standard error of their difference on."
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


def _chart(table: PaperTable) -> str:
    """Return the order of the rows by AP, in the paper and here; empty before two of them are measured."""
    printed = {variant.label: value for variant in table.variants if (value := variant.printed("ap")) is not None}
    measured = {variant.label: value for variant in table.variants if (value := variant.measured("ap")) is not None}
    if len(measured) < 2:
        return ""
    spreads = {v.label: f" ± {table.format(spread)}" for v in table.variants if (spread := v.spread("ap")) is not None}
    left = [(label, table.format(printed[label])) for label in sorted(printed, key=lambda label: -printed[label])]
    right = [
        (label, table.format(measured[label]) + spreads.get(label, ""))
        for label in sorted(measured, key=lambda label: -measured[label])
    ]
    return f"<div class='wide'>{order_chart(left, right, left_name='paper', right_name='here')}</div>"
