"""Blocks that do not learn: their parameters get no gradient and their batch norm does not move."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from yolofleet.errors import UserError
from yolofleet.models.detector import Detector
from yolofleet.models.wiring import wire
from yolofleet.specs.model import ModelTable


def check_block_names(table: ModelTable, names: Sequence[str]) -> None:
    """Refuse names that are no block of the model.

    Raises:
        UserError: Names the block, the nearest and all others.
    """
    known = [block.name for block in wire(table).blocks]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise UserError(f"freeze: model {table.name} has no block '{name}'{hint} Its blocks: {', '.join(known)}")


def freeze_blocks(model: Detector, names: Sequence[str]) -> None:
    """Freeze blocks of a model in training mode, before an optimiser is made over it.

    Args:
        model: The model; frozen blocks stay in evaluation mode, so they normalise by their running statistics.
        names: Names of its blocks, known to be right.
    """
    for name in names:
        model.blocks[name].requires_grad_(False).eval()
