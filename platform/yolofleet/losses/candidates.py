"""Candidate search: which cells of which anchors may answer for which box (paper, section 4.2).

A box and an anchor fit when neither side differs by the ratio limit or more. A fitting pair offers the cell that holds
the box's centre and the neighbours that the centre is close to: within `reach` of a cell on the left, above, on the
right and below. Reach 0.5 gives up to three cells (the fine label of the paper); reach 1.0 gives up to five (the
coarse label). Nothing here reads predictions, so the search runs where the boxes are: in host memory if they are there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from yolofleet.losses.boxes import Boxes
from yolofleet.losses.levels import NEIGHBOURS, Levels, count_slots, find_slots, is_readable, send


@dataclass(frozen=True)
class Candidates:
    """Cells that may answer for boxes, or those of them that were chosen as positives; level after level, n slots.

    Inside a level, the slots of a cell are neighbours, in the published order: by neighbour, then anchor, then box.
    Where a cell answers for several boxes, the last one sets its objectness target.
    """

    level_sizes: tuple[int, ...]
    """Slots of each level; they sum to n."""
    valid: Tensor
    """(n,) whether the slot is in use; on a CPU all are."""
    cell: Tensor
    """(n,) number of the cell (image, anchor, row, column), counted through all levels."""
    image: Tensor
    """(n,) image index."""
    prior: Tensor
    """(n,) level x anchors + anchor."""
    column: Tensor
    """(n,) column of the cell."""
    row: Tensor
    """(n,) row of the cell."""
    box: Tensor
    """(n,) index of the box (into `Boxes`)."""

    def __len__(self) -> int:
        return self.cell.shape[0]

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "level_sizes"}

    def to(self, device: torch.device) -> Candidates:
        """Copy to another device, as one table and without waiting."""
        if self.cell.device == device:
            return self
        tensors = self._tensors()
        table = send(torch.stack([tensor.long() for tensor in tensors.values()]), device)
        sent = dict(zip(tensors, table.unbind(0), strict=True))
        return Candidates(self.level_sizes, **{**sent, "valid": sent["valid"].bool()})

    def choose(self, box: Tensor, valid: Tensor) -> Candidates:
        """Keep the slots marked `valid` (n,) and let each answer for `box` (n,)."""
        chosen = replace(self, box=box, valid=valid)
        if not is_readable(valid):
            return chosen
        slots = find_slots(valid)
        sizes = tuple(int(part.sum()) for part in torch.split(valid, list(self.level_sizes)))
        return Candidates(sizes, **{name: tensor[slots] for name, tensor in chosen._tensors().items()})

    def join(self, further: Candidates, num_cells: int) -> Candidates:
        """Append the slots of further levels, whose cells are counted on from `num_cells`."""
        mine, others = self._tensors(), replace(further, cell=further.cell + num_cells)._tensors()
        sizes = self.level_sizes + further.level_sizes
        return Candidates(sizes, **{name: torch.cat([mine[name], others[name]]) for name in mine})


def search_candidates(boxes: Boxes, levels: Levels, *, reach: float, ratio_limit: float) -> Candidates:
    """Find the cells that may answer for each box.

    Args:
        boxes: N boxes.
        levels: L levels of A anchors, where the boxes are.
        reach: How close the centre must be to a neighbouring cell, in cells; 0 < reach <= 1.
        ratio_limit: A box and an anchor fit when neither side differs by this factor or more.

    Returns:
        Slots ordered by level, cell and published order: on a CPU those in use; on a device one for every (level,
        neighbour, anchor, box), those not in use last in their image.
    """
    num_boxes, num_anchors = len(boxes), levels.anchors.shape[1]
    # 1. Boxes and anchors of like shape fit. Boxes come last in every shape, which keeps the operations fast.
    grid = levels.grid[:, :, None]  # (L, 2, 1) columns, rows
    share = boxes.xywh.t()  # (4, N)
    centre, size = share[:2] * grid, share[2:] * grid  # (L, 2, N) in cells
    ratio = size[:, None] / levels.anchors[..., None]  # (L, A, 2, N)
    fits = torch.maximum(ratio, ratio.reciprocal()).amax(2) < ratio_limit  # (L, A, N)
    fits &= boxes.alive

    # 2. The centre's own cell, and the neighbours within reach that lie on the grid.
    distance = torch.cat([centre, grid - centre], 1)  # (L, 4, N) from the left, the top, the right, the bottom
    is_close = (distance.frac() < reach) & (distance > 1.0)
    is_candidate = torch.cat([torch.ones_like(is_close[:, :1]), is_close], 1)  # (L, 5, N)
    valid = is_candidate[:, :, None] & fits[:, None]  # (L, 5, A, N)

    # 3. The cell of each slot: the one that holds the moved centre.
    position = (centre[:, None] - levels.neighbours * reach).clamp_(min=0.0)  # (L, 5, 2, N)
    column, row = torch.minimum(position, grid[:, None] - 1.0).long().unbind(2)  # (L, 5, N)
    offset = boxes.image * levels.image_cells[:, None, None] + row * levels.grid[:, :1, None].long() + column
    cell = (offset[:, :, None] + levels.first_cell[:, None, :, None]).flatten()  # from (L, 5, A, N)

    # 4. Order the slots by cell, those not in use last in their image. The sort is stable, so the slots of a cell keep
    # the published order.
    slot = find_slots(valid)
    end = levels.first_cell[:, :1] + (boxes.image + 1) * levels.image_cells[:, None]  # (L, N) of the box's image
    rank = torch.where(valid, 2 * cell.view(valid.shape), 2 * end[:, None, None] - 1).flatten()
    slot = slot[rank[slot].argsort(stable=True)]

    # 5. A slot's number tells its neighbour, anchor and box: they are the digits of it.
    combination = slot // max(num_boxes, 1)  # of level, neighbour and anchor
    box, level_neighbour = slot % max(num_boxes, 1), combination // num_anchors
    moved_box = level_neighbour * num_boxes + box
    return Candidates(
        level_sizes=count_slots(valid),
        valid=valid.flatten()[slot],
        cell=cell[slot],
        image=boxes.image[box],
        prior=level_neighbour // len(NEIGHBOURS) * num_anchors + combination % num_anchors,
        column=column.flatten()[moved_box],
        row=row.flatten()[moved_box],
        box=box,
    )
