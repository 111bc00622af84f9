"""The table of the paper beside the trials of its space: row by row with the paper's digits, and the order of the rows.

Trained on other data or for less time, AP is another; what can be compared is the order. Two rows are compared by every
figure in which the paper's differ, unless another base lies between them: a row named "base ..." begins a group. Where
a space has several seeds, a difference of two means counts from twice its standard error on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, combinations
from typing import Any

from yolofleet.evaluation.published import FIGURES
from yolofleet.search.entry import Entry
from yolofleet.specs.search import SearchSpec
from yolofleet.specs.search_parts import PaperRow, PaperSpec

BASE = "base"
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Variant:
    """A row of the paper, a trial, or both where they have one name."""

    label: str
    row: PaperRow | None
    entry: Entry | None
    """The trial; its figures count once it has trained to its end."""

    def printed(self, figure: str) -> float | None:
        """Return the paper's figure in percent."""
        value: float | None = getattr(self.row, figure, None)
        return value

    def measured(self, figure: str) -> float | None:
        """Return the figure of the trial in percent, the mean over its seeds."""
        return self._percent(figure, {} if self.entry is None else self.entry.measured)

    def spread(self, figure: str) -> float | None:
        """Return its standard deviation over the seeds in percent; None with one seed."""
        return self._percent(figure, {} if self.entry is None else self.entry.spread)

    def _percent(self, figure: str, values: Mapping[str, float]) -> float | None:
        value = values.get(f"val_{FIGURES[figure][1]}")
        return None if value is None or self.entry is None or not self.entry.completed else 100 * value


@dataclass(frozen=True)
class Order:
    """Pairs of rows that differ in a figure of the paper, the better one first."""

    alike: list[tuple[str, str]]
    """Ranked here as in the paper."""
    opposite: list[tuple[str, str]]
    """Ranked the other way."""
    unclear: list[tuple[str, str]]
    """Equal here, or within the spread of the seeds."""

    @property
    def num_pairs(self) -> int:
        """Number of pairs that are compared."""
        return len(self.alike) + len(self.opposite) + len(self.unclear)


@dataclass(frozen=True)
class PaperTable:
    """The comparison."""

    table: str
    note: str | None
    figures: list[str]
    """The figures that the paper prints, of `FIGURES`."""
    digits: int
    """Digits after the point of its AP."""
    seeds: int
    """Runs of each variant."""
    variants: list[Variant]
    """The paper's rows in their order, then the trials without a row."""
    orders: dict[str, Order]
    """The order by each figure."""

    def format(self, value: float | None) -> str:
        """Return AP with the paper's digits."""
        return "-" if value is None else f"{value:.{self.digits}f}"

    def document(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values."""
        rows = [
            {
                "label": variant.label,
                "trial": None if variant.entry is None else variant.entry.number,
                "paper": {figure: variant.printed(figure) for figure in self.figures},
                "here": {figure: variant.measured(figure) for figure in self.figures},
                "spread": {figure: variant.spread(figure) for figure in self.figures},
            }
            for variant in self.variants
        ]
        orders = {figure: asdict(order) for figure, order in self.orders.items()}
        return {"table": self.table, "note": self.note, "seeds": self.seeds, "rows": rows, "order": orders}


def compare_with_paper(spec: SearchSpec, paper: PaperSpec, entries: Sequence[Entry]) -> PaperTable:
    """Return the paper's table beside the trials, matched by the names of choices."""
    by_label = {str(value): entry for entry in entries for value in entry.values.values()}
    labels = [row.label for row in paper.rows]
    variants = [Variant(row.label, row, by_label.get(row.label)) for row in paper.rows]
    if all(isinstance(parameter.choice, dict) for parameter in spec.parameters.values()):
        variants += [Variant(label, None, entry) for label, entry in by_label.items() if label not in labels]
    figures = [figure for figure in FIGURES if any(getattr(row, figure) is not None for row in paper.rows)]
    printed = [value for variant in variants for figure in figures if (value := variant.printed(figure)) is not None]
    return PaperTable(
        table=paper.table,
        note=paper.note,
        figures=figures,
        digits=max((len(str(value).partition(".")[2]) for value in printed), default=1),
        seeds=spec.repeats,
        variants=variants,
        orders={figure: _compare_order(variants, figure, spec.repeats) for figure in figures},
    )


def _compare_order(variants: Sequence[Variant], figure: str, seeds: int) -> Order:
    """Return how the pairs that have a figure both here and in the paper are ranked."""
    order = Order([], [], [])
    groups = accumulate(variant.label.startswith(BASE) for variant in variants)
    known = [
        (group, variant.label, printed, measured, variant.spread(figure) or 0.0)
        for group, variant in zip(groups, variants, strict=True)
        if (printed := variant.printed(figure)) is not None and (measured := variant.measured(figure)) is not None
    ]
    for pair in combinations(known, 2):
        better, worse = sorted(pair, key=lambda entry: -entry[2])
        if better[0] != worse[0] or better[2] == worse[2]:
            continue
        difference = better[3] - worse[3]
        if abs(difference) <= STANDARD_ERRORS * math.hypot(better[4], worse[4]) / math.sqrt(seeds):
            kind = order.unclear
        else:
            kind = order.alike if difference > 0 else order.opposite
        kind.append((better[1], worse[1]))
    return order
