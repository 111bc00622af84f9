"""Compound scaling of concatenation-based models (paper sections 3.2 and 5.4.1): a pure function from table to table.

Depth is the one parameter. An ELAN block with hidden width h, chain width w and n stacked convolutions concatenates
(n / 2) w + 2 h channels (n w + 2 h where all are tapped). When the depth changes n, that width changes too, and the
layers between blocks are widened by the same ratio: 4 -> 6 convolutions give 1.25, 4 -> 8 give 1.5. Hidden widths stay.
"""

from __future__ import annotations

from functools import cache
from math import ceil, floor
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.specs.blocks import BlockRow, ElanRow, Row, Scaled
from yolofleet.specs.model import ModelTable

WIDTH_MULTIPLE = 8


def scale(
    table: ModelTable,
    *,
    depth: float = 1.0,
    transition_width: float | None = None,
    hidden_width: float | None = None,
) -> ModelTable:
    """Scale a block table.

    Args:
        table: The base.
        depth: Multiplies the stacked convolutions of each block.
        transition_width: Multiplies the widths between blocks; unless given it follows from the change of the blocks'
            concatenations.
        hidden_width: Multiplies the widths inside blocks; 1 unless given.

    Returns:
        The scaled table; the same one when nothing changes. Widths are rounded up to multiples of 8.

    Raises:
        UserError: A factor is not positive, or the table has nothing that it could act on.
    """
    for name, factor in (("depth", depth), ("transition_width", transition_width), ("hidden_width", hidden_width)):
        if factor is not None and not 0 < factor < float("inf"):
            raise UserError(f"model {table.name}: {name} must be a positive number, not {factor}")
    if hidden_width not in (None, 1.0) and not any(scaled_fields(type(row), Scaled.HIDDEN) for row in table.blocks):
        raise UserError(
            f"model {table.name}: hidden_width has nothing to act on: its blocks' inner widths follow from their "
            "outer ones; use transition_width"
        )
    deepened = tuple(_deepen(row, depth) for row in table.blocks)
    if transition_width is None:
        transition_width = concatenation_ratio(table.blocks, deepened)
    hidden_width = 1.0 if hidden_width is None else hidden_width
    if transition_width == hidden_width == 1.0 and deepened == table.blocks:
        return table
    update: dict[str, Any] = {"blocks": tuple(_widen(row, transition_width, hidden_width) for row in deepened)}
    if table.auxiliary is not None:
        out = tuple(scaled_width(width, transition_width) for width in table.auxiliary.out)
        update["auxiliary"] = table.auxiliary.model_copy(update={"out": out})
    return table.model_copy(update=update)


def concatenation_ratio(before: tuple[BlockRow, ...], after: tuple[BlockRow, ...]) -> float:
    """Return the factor by which the blocks' concatenations grow: the one that transition layers follow."""
    widths = [sum(_concatenated_width(row) for row in rows if isinstance(row, ElanRow)) for rows in (before, after)]
    return widths[1] / widths[0] if widths[0] else 1.0


def _concatenated_width(row: ElanRow) -> int:
    tapped = row.stack if row.taps == "all" else row.stack // 2
    return row.groups * (tapped * (row.chain or row.hidden) + 2 * row.hidden)


def scaled_width(width: int, factor: float) -> int:
    """Return a scaled width, rounded up to a multiple of 8 (the published rule of the baselines)."""
    if factor == 1.0:
        return width
    # The guard keeps 80 * 1.1 = 88.00000000000001 at 88.
    return max(ceil(round(width * factor / WIDTH_MULTIPLE, 9)), 1) * WIDTH_MULTIPLE


def _deepen(row: BlockRow, depth: float) -> BlockRow:
    if depth == 1.0:
        return row
    update: dict[str, Any] = {}
    for field in scaled_fields(type(row), Scaled.EVEN_STACK):
        update[field] = 2 * max(floor(getattr(row, field) * depth / 2 + 0.5), 1)
    for field in scaled_fields(type(row), Scaled.STACK):
        stack = getattr(row, field)
        # A single residual block stays single: the published rule.
        update[field] = max(floor(stack * depth + 0.5), 1) if stack > 1 else stack
    return row.model_copy(update=update) if update else row


def _widen(row: BlockRow, transition: float, hidden: float) -> BlockRow:
    update: dict[str, Any] = {}
    for role, factor in ((Scaled.TRANSITION, transition), (Scaled.HIDDEN, hidden)):
        for field in scaled_fields(type(row), role):
            if (width := getattr(row, field)) is not None and factor != 1.0:
                update[field] = scaled_width(width, factor)
    return row.model_copy(update=update) if update else row


@cache
def scaled_fields(row_type: type[Row], role: Scaled) -> tuple[str, ...]:
    """Return the fields of a kind of row that follow a factor."""
    return tuple(name for name, field in row_type.model_fields.items() if role in _markers(field))


def _markers(field: Any) -> list[Any]:
    """Return the annotations of a field, those inside an optional one too."""
    arguments = getattr(field.annotation, "__args__", ())
    return [*field.metadata, *(marker for argument in arguments for marker in getattr(argument, "__metadata__", ()))]
