"""Candidate search: which places of the grids may answer for which box.

A box and an anchor fit when neither side differs by the ratio limit or more. A fitting pair offers the cell that holds
the box's centre and the neighbours that the centre is near to: within `reach` of a cell on its left, above, on its
right and below. Reach 0.5 gives up to three cells (the fine label of the paper's section 4.2); reach 1.0 gives up to
five (the coarse label). Nothing here looks at predictions, so the search runs where the boxes are, in host memory if
they are there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from yolofleet.losses.boxes import Boxes
from yolofleet.losses.hosting import counts_in_use, indices_in_use, is_countable, send

# The cell itself, then the neighbours on the left, above, on the right, below: how far the centre is moved, as (x, y).
NEIGHBOURS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))


@dataclass(frozen=True)
class Places:
    """Places that stand for boxes, level after level; n slots. Inside a level, the slots of a cell are neighbours.

    Attributes:
        level_sizes: Slots of each level; they sum to n.
        valid: (n,) whether the slot is in use.
        cell: (n,) index into the level's predictions flattened over (image, anchor, row, column).
        image: (n,) image index.
        prior: (n,) level x anchors + anchor.
        column: (n,) column of the cell.
        row: (n,) row of the cell.
        box: (n,) index of the box (into `Boxes`).
        order: (n,) the published order inside a level: by neighbour, then anchor, then box. Where a cell stands for
            several boxes, the last one in this order sets its objectness target.
    """

    level_sizes: tuple[int, ...]
    valid: Tensor
    cell: Tensor
    image: Tensor
    prior: Tensor
    column: Tensor
    row: Tensor
    box: Tensor
    order: Tensor

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
        sizes = tuple(int(part.sum()) for part in torch.split(valid, list(self.level_sizes)))
        return Places(sizes, **{name: column[kept] for name, column in places._columns().items()})

    def joined(self, other: Places) -> Places:
        """These places, then those of further levels."""
        mine, others = self._columns(), other._columns()
        sizes = self.level_sizes + other.level_sizes
        return Places(sizes, **{name: torch.cat([mine[name], others[name]]) for name in mine})


def search_candidates(boxes: Boxes, grid: Tensor, anchors: Tensor, *, reach: float, ratio_limit: float) -> Places:
    """Find the places that may answer for each box.

    Args:
        boxes: N boxes.
        grid: (L, 2) floating,  columns and rows of each level.
        anchors: (L, A, 2) width and height in cells of their level, where the boxes are.
        reach: How near the centre must be to a neighbouring cell, in cells; 0 < reach <= 1.
        ratio_limit: A box and an anchor fit when neither side differs by this factor or more.

    Returns:
        Slots ordered by level, cell and published order: those in use in host memory; on a device one for every
        (level, box, neighbour, anchor), those not in use last in their level.
    """
    num_anchors = anchors.shape[1]
    num_boxes = len(boxes)
    neighbours = send(torch.tensor(NEIGHBOURS, dtype=grid.dtype), grid.device)  # (5, 2)
    grid = grid[:, None]

    centre = boxes.xywh[:, :2] * grid  # (L, N, 2) in cells
    ratio = (boxes.xywh[:, 2:] * grid)[:, :, None] / anchors[:, None]  # (L, N, A, 2)
    fits = torch.maximum(ratio, 1.0 / ratio).amax(-1) < ratio_limit  # (L, N, A)

    from_end = grid - centre
    near_low = (centre % 1.0 < reach) & (centre > 1.0)  # (L, N, 2): left, above
    near_high = (from_end % 1.0 < reach) & (from_end > 1.0)  # (L, N, 2): right, below
    own_cell = torch.ones_like(near_low[..., :1])
    offered = torch.cat([own_cell, near_low, near_high], -1) & boxes.alive[:, None]  # (L, N, 5)
    valid = offered[..., None] & fits[:, :, None]  # (L, N, 5, A)

    size = grid.long()  # (L, 1, 2)
    position = (centre[:, :, None] - neighbours * reach).long()  # (L, N, 5, 2)
    position = torch.minimum(position.clamp_(min=0), size[:, :, None] - 1)
    column, row = position.unbind(-1)
    columns, rows = size.unbind(-1)  # (L, 1)
    image_and_row = boxes.image[:, None] * num_anchors * rows[..., None] + row  # (L, N, 5) for anchor 0
    anchor = torch.arange(num_anchors, device=grid.device)
    cell = (image_and_row[..., None] + anchor * rows[..., None, None]) * columns[..., None, None] + column[..., None]

    neighbour = torch.arange(len(NEIGHBOURS), device=grid.device)
    box = torch.arange(num_boxes, device=grid.device)
    order = (neighbour[:, None] * num_anchors + anchor) * num_boxes + box[:, None, None]  # (N, 5, A)
    rank = _rank(cell, order, valid)

    used = indices_in_use(valid)
    used = used[rank.flatten()[used].argsort()]
    place = used.div(num_anchors, rounding_mode="floor")  # index of (level, box, neighbour)
    level_and_box = place.div(len(NEIGHBOURS), rounding_mode="floor")
    level = level_and_box.div(max(num_boxes, 1), rounding_mode="floor")
    chosen_box = level_and_box - level * num_boxes
    return Places(
        level_sizes=tuple(counts_in_use(valid)),
        valid=valid.flatten()[used],
        cell=cell.flatten()[used],
        image=boxes.image[chosen_box],
        prior=level * num_anchors + (used - place * num_anchors),
        column=column.flatten()[place],
        row=row.flatten()[place],
        box=chosen_box,
        order=order.flatten()[used - level * (num_boxes * len(NEIGHBOURS) * num_anchors)],
    )


def _rank(cell: Tensor, order: Tensor, valid: Tensor) -> Tensor:
    """A number that sorts slots by level, use, cell and published order: (L, N, 5, A)."""
    level = torch.arange(len(cell), device=cell.device).view(-1, 1, 1, 1)
    part = level * 2 + ~valid
    num_cells = cell.amax() + 1 if cell.numel() else 1
    return (part * num_cells + cell) * order.numel() + order
