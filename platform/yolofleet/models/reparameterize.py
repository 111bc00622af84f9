"""Where RepConv may stand, and the placements of the paper's Tables 4 and 5.

The rule (paper section 4.1, Figure 4): a RepConv whose result is added to a residual or concatenated has no identity
branch (RepConvN); elsewhere it has one where the widths allow. ``BlockBuilder.finish`` applies it to a block's graph.

A *place* names a convolution by what it does. In an ELAN block the stacked convolutions come in stacks of two:
``first`` is the one inside a stack, ``second`` the one that ends it and is concatenated. In a residual block the 3x3
is ``residual``. ``head`` is the 3x3 in front of a prediction. ``+identity`` after a place forces the identity branch
against the rule, as a naive replacement would.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from yolofleet.core.errors import UserError
from yolofleet.models.graph import Rep
from yolofleet.specs.blocks import BlockRow, ConvRow, CspRow, DarkRow, ElanRow
from yolofleet.specs.model import ModelTable, Reparameterize

PLAN = ("head", "first", "second", "residual")
FORCED = ("first+identity", "second+identity", "residual+identity")
PLACES = PLAN + FORCED

STACKED_ELAN_PLACEMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "inside each stack": ("first",),
        "at the end of each stack": ("second",),
        "everywhere in each stack": ("first", "second"),
        "at the end of each stack, identity kept": ("second+identity",),
        "everywhere in each stack, identity kept": ("first+identity", "second+identity"),
    }
)
"""Five placements on the 3-stacked ELAN (Table 4). The drawing of Figure 6 gives them letters a to e; which letter is
which placement cannot be told from the text, so they are named by what they do."""


def elan_rep(places: tuple[str, ...], position: int) -> Rep:
    """Return the form of the stacked convolution at a position (from 0) in an ELAN block."""
    return _form(places, "second" if position % 2 else "first")


def residual_rep(places: tuple[str, ...]) -> Rep:
    """Return the form of the 3x3 convolution in a residual block."""
    return _form(places, "residual")


def _form(places: tuple[str, ...], place: str) -> Rep:
    if f"{place}+identity" in places:
        return "identity"
    return "planned" if place in places else "none"


def reparameterized(table: ModelTable, choice: Reparameterize) -> ModelTable:
    """Return the table with RepConv at the chosen places and nowhere else.

    Args:
        table: A block table.
        choice: ``planned`` (every place, identity by the rule), ``none``, or a list of places.

    Raises:
        UserError: A place is not known, or the table has none of the kind.
    """
    places = PLAN if choice == "planned" else () if choice == "none" else tuple(choice)
    for place in places:
        _check_known(place)
    before_head = {reference.partition(".")[0] for reference in table.head.inputs}
    rows = tuple(_row_with(row, places, row.name in before_head) for row in table.blocks)
    if not isinstance(choice, str):
        _check_used(table, rows, places, before_head)
    return table.model_copy(update={"blocks": rows})


def _row_with(row: BlockRow, places: tuple[str, ...], before_head: bool) -> BlockRow:
    match row:
        case ElanRow():
            return row.model_copy(update={"rep": tuple(p for p in places if p.startswith(("first", "second")))})
        case DarkRow() | CspRow():
            return row.model_copy(update={"rep": tuple(p for p in places if p.startswith("residual"))})
        case ConvRow():
            rep = before_head and "head" in places and row.kernel == 3 and row.stride == 1
            return row.model_copy(update={"rep": rep})
        case _:
            return row


def _check_known(place: str) -> None:
    if place not in PLACES:
        near = difflib.get_close_matches(place, PLACES, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(
            f"reparameterize: unknown place '{place}'{hint} Known: {', '.join(PLACES)}, or planned, or none"
        )


def _check_used(table: ModelTable, rows: tuple[BlockRow, ...], places: tuple[str, ...], before_head: set[str]) -> None:
    used = {place for row in rows if isinstance(row, ElanRow | DarkRow | CspRow) for place in row.rep}
    used |= {"head" for row in rows if isinstance(row, ConvRow) and row.rep and row.name in before_head}
    if unused := [place for place in places if place not in used]:
        raise UserError(f"reparameterize: model {table.name} has no convolution at {', '.join(unused)}")
