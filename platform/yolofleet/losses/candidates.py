"""Candidate search: which places of the grids may answer for which box.

A box and an anchor fit when neither side differs by the ratio limit or more. A fitting pair offers the cell that holds
the box's centre and the neighbours that the centre is near to: within `reach` of a cell on its left, above, on its
right and below. Reach 0.5 gives up to three cells (the fine label of the paper's section 4.2); reach 1.0 gives up to
five (the coarse label). Nothing here looks at predictions, so the search runs where the boxes are, in host memory if
they are there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from yolofleet.losses.boxes import Boxes
from yolofleet.losses.hosting import counts_in_use, indices_in_use, is_countable, send, whole_quotient
from yolofleet.losses.levels import Levels

# The cell itself, then the neighbours on the left, above, on the right, below: how far the centre is moved, as (x, y).
NEIGHBOURS = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))


@dataclass(frozen=True)
class Places:
    """Places that stand for boxes, level after level; n slots.

    Inside a level, the slots of a cell are neighbours, in the published order: by neighbour, then anchor, then box.
    Where a cell stands for several boxes, the last one sets its objectness target.

    Attributes:
        level_sizes: Slots of each level; they sum to n.
        valid: (n,) whether the slot is in use.
        cell: (n,) number of the cell (image, anchor, row, column), counted through all levels.
        image: (n,) image index.
        prior: (n,) level x anchors + anchor.
        column: (n,) column of the cell.
        row: (n,) row of the cell.
        box: (n,) index of the box (into `Boxes`).
    """

    level_sizes: tuple[int, ...]
    valid: Tensor
    cell: Tensor
    image: Tensor
    prior: Tensor
    column: Tensor
    row: Tensor
    box: Tensor

    def __len__(self) -> int:
        return self.cell.shape[0]

    def _columns(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "level_sizes"}

    def to(self, device: torch.device) -> Places:
        """The same places on another device, sent as one table without waiting."""
        if self.cell.device == device:
            return self
        columns = self._columns()
        table = send(torch.stack([column.long() for column in columns.values()]), device)
        moved = dict(zip(columns, table.unbind(0), strict=True))
        return Places(self.level_sizes, **{**moved, "valid": moved["valid"].bool()})

    def chosen(self, box: Tensor, valid: Tensor) -> Places:
        """Keep the slots marked `valid` (n,) and let each stand for `box` (n,)."""
        places = replace(self, box=box, valid=valid)
        if not is_countable(valid):
            return places
        kept = indices_in_use(valid)
        ends = [0, *np.searchsorted(kept.numpy(), list(accumulate(self.level_sizes))).tolist()]
        sizes = tuple(end - start for start, end in pairwise(ends))
        return Places(sizes, **{name: column.index_select(0, kept) for name, column in places._columns().items()})

    def joined(self, further: Places, num_cells: int) -> Places:
        """These places, then those of further levels, whose cells are counted on from `num_cells`."""
        mine, others = self._columns(), replace(further, cell=further.cell + num_cells)._columns()
        sizes = self.level_sizes + further.level_sizes
        return Places(sizes, **{name: torch.cat([mine[name], others[name]]) for name in mine})


def search_candidates(boxes: Boxes, levels: Levels, *, reach: float, ratio_limit: float) -> Places:
    """Find the places that may answer for each box.

    Args:
        boxes: N boxes.
        levels: L levels of A anchors, where the boxes are.
        reach: How near the centre must be to a neighbouring cell, in cells; 0 < reach <= 1.
        ratio_limit: A box and an anchor fit when neither side differs by this factor or more.

    Returns:
        Slots ordered by level, cell and published order: those in use in host memory; on a device one for every
        (level, neighbour, anchor, box), those not in use last in their level.
    """
    num_boxes, num_anchors = len(boxes), levels.anchors.shape[1]
    grid = levels.grid[:, :, None]  # (L, 2, 1) columns, rows
    share = boxes.xywh.t()  # (4, N); boxes come last everywhere below, where operations are fastest
    centre, size = share[:2] * grid, share[2:] * grid  # (L, 2, N) in cells
    ratio = size[:, None] / levels.anchors[..., None]  # (L, A, 2, N)
    fits = torch.maximum(ratio, ratio.reciprocal()).amax(2) < ratio_limit  # (L, A, N)
    fits &= boxes.alive

    distance = torch.cat([centre, grid - centre], 1)  # (L, 4, N) from the left, the top, the right, the bottom
    near = (distance.frac() < reach) & (distance > 1.0)
    offered = torch.cat([torch.ones_like(near[:, :1]), near], 1)  # (L, 5, N)
    valid = offered[:, :, None] & fits[:, None]  # (L, 5, A, N)

    moves = torch.tensor(NEIGHBOURS, dtype=centre.dtype)[..., None] * reach  # (5, 2, 1)
    position = (centre[:, None] - send(moves, centre.device)).clamp_(min=0.0)  # (L, 5, 2, N)
    column, row = torch.minimum(position, grid[:, None] - 1.0).long().unbind(2)  # (L, 5, N)
    columns = levels.grid[:, :1, None].long()  # (L, 1, 1)
    offset = boxes.image * levels.image_cells[:, None, None] + row * columns + column  # from the prior's first cell
    cell = offset[:, :, None] + levels.first_cell[:, None, :, None]  # (L, 5, A, N)

    used, cell_used = _by_cell(cell.flatten(), valid, levels.starts[-1])
    combination = whole_quotient(used, max(num_boxes, 1))  # of level, neighbour and anchor
    box = used - combination * num_boxes
    neighbourhood = whole_quotient(combination, num_anchors)  # level and neighbour
    place = neighbourhood * num_boxes + box
    level = whole_quotient(neighbourhood, len(NEIGHBOURS))
    return Places(
        level_sizes=tuple(counts_in_use(valid)),
        valid=valid.flatten().index_select(0, used),
        cell=cell_used,
        image=boxes.image.index_select(0, box),
        prior=level * num_anchors + (combination - neighbourhood * num_anchors),
        column=column.flatten().index_select(0, place),
        row=row.flatten().index_select(0, place),
        box=box,
    )


def _by_cell(cell: Tensor, valid: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """Sort slots by level, use, cell and published order: their indices and cells.

    Args:
        cell: (slots,) the cell of each slot.
        valid: (L, ...) whether it is in use, for all slots.
        num_cells: Cells of all levels.
    """
    if is_countable(valid):
        used = indices_in_use(valid)
        cell = cell.index_select(0, used)
        number = cell * valid.numel() + used
        number.numpy().sort()  # vectorised, a tenth of the time of torch's
        cell = whole_quotient(number, valid.numel())
        return number.sub_(cell, alpha=valid.numel()), cell
    index = torch.arange(valid.numel(), device=cell.device)
    level = whole_quotient(index, max(valid[0].numel(), 1))
    number = cell + (2 * level + ~valid.flatten()) * num_cells
    rank = (number * valid.numel() + index).argsort()
    return rank, cell.index_select(0, rank)
