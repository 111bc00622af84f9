"""Positions of RepConv in a model: what the rows of the paper's Tables 4 and 5 differ in.

The rule (paper section 4.1, Figure 4): a RepConv whose result is added to a residual or concatenated has no identity
branch (RepConvN); elsewhere it has one where the widths allow. ``BlockBuilder.finish`` applies it to a block's graph.

A *position* names a convolution by what it does. In an ELAN block the stacked convolutions come in stacks of two:
``first`` is the one inside a stack, ``second`` the one that ends it and is concatenated. In a residual block the 3x3
is ``residual``. ``head`` is the 3x3 in front of a prediction. ``+identity`` after a position forces the identity branch
against the rule, as a naive replacement would.
"""

from __future__ import annotations

from yolofleet.core.errors import UserError
from yolofleet.core.text import did_you_mean
from yolofleet.specs.blocks import BlockRow, ConvRow, CspRow, DarkRow, ElanRow
from yolofleet.specs.model import ModelTable, Reparameterize

PLAN = ("head", "first", "second", "residual")
FORCED = ("first+identity", "second+identity", "residual+identity")
POSITIONS = PLAN + FORCED


def reparameterize(table: ModelTable, choice: Reparameterize) -> ModelTable:
    """Return the table with RepConv at the chosen positions and nowhere else.

    Args:
        table: A block table.
        choice: ``planned`` (every position, identity by the rule), ``none``, or a list of positions.

    Raises:
        UserError: A position is not known, or the table has no such convolution.
    """
    positions = PLAN if choice == "planned" else () if choice == "none" else tuple(choice)
    for position in positions:
        _check_known(position)
    before_head = {reference.partition(".")[0] for reference in table.head.inputs}
    rows = tuple(_row_with(row, positions, row.name in before_head) for row in table.blocks)
    if not isinstance(choice, str):
        _check_used(table, rows, positions, before_head)
    return table.model_copy(update={"blocks": rows})


def _row_with(row: BlockRow, positions: tuple[str, ...], before_head: bool) -> BlockRow:
    match row:
        case ElanRow():
            return row.model_copy(update={"rep": tuple(p for p in positions if p.startswith(("first", "second")))})
        case DarkRow() | CspRow():
            return row.model_copy(update={"rep": tuple(p for p in positions if p.startswith("residual"))})
        case ConvRow():
            rep = before_head and "head" in positions and row.kernel == 3 and row.stride == 1
            return row.model_copy(update={"rep": rep})
        case _:
            return row


def _check_known(position: str) -> None:
    if position not in POSITIONS:
        raise UserError(
            f"reparameterize: unknown position '{position}'{did_you_mean(position, POSITIONS)} "
            f"Known: {', '.join(POSITIONS)}, or planned, or none"
        )


def _check_used(
    table: ModelTable, rows: tuple[BlockRow, ...], positions: tuple[str, ...], before_head: set[str]
) -> None:
    used = {position for row in rows if isinstance(row, ElanRow | DarkRow | CspRow) for position in row.rep}
    used |= {"head" for row in rows if isinstance(row, ConvRow) and row.rep and row.name in before_head}
    if unused := [position for position in positions if position not in used]:
        raise UserError(f"reparameterize: model {table.name} has no convolution at {', '.join(unused)}")
