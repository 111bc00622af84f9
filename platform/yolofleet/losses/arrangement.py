"""How candidates and boxes are laid out for comparing them: groups of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Places
from yolofleet.losses.hosting import is_countable, send
from yolofleet.losses.selection import BLOCK


@dataclass(frozen=True)
class Arrangement:
    """G groups, each a table with a row for each of its boxes and a column for each of its candidates.

    In host memory a group is an image, and the groups are ordered by their number of boxes, so that neighbours are
    of like size. On a device, where the number of candidates of an image is not known to the host, one group holds
    all boxes and all candidates.

    Attributes:
        heights: Boxes of each group, ascending.
        widths: Columns of each group, multiples of `selection.BLOCK`.
        box: (G, highest) the box of each row, N for none.
        candidate: (G, widest) the candidate of each column, any one for an empty column.
        empty: (G, widest) whether a column has no candidate.
        first: (G, widest) the group's first column on the same cell. A cell that several boxes offer is several
            candidates, equal in every respect and side by side.
        position: (n,) each candidate's index in the flattened (G, widest).
        is_shared: Whether a group holds several images.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    box: Tensor
    candidate: Tensor
    empty: Tensor
    first: Tensor
    position: Tensor
    is_shared: bool

    def to(self, device: torch.device) -> Arrangement:
        """The same arrangement for candidates on another device, sent as one table without waiting."""
        if self.box.device == device:
            return self
        parts = (self.box, self.candidate, self.empty, self.first, self.position)
        flat = send(torch.cat([part.flatten().long() for part in parts]), device)
        sent = torch.split(flat, [part.numel() for part in parts])
        box, candidate, empty, first, position = (
            table.view(part.shape) for table, part in zip(sent, parts, strict=True)
        )
        return replace(self, box=box, candidate=candidate, empty=empty.bool(), first=first, position=position)


def arrange(places: Places, boxes: Boxes, num_images: int) -> Arrangement:
    """Lay out candidates and boxes by image where their number can be looked at, else all in one group.

    Args:
        places: n candidates; inside a level they are ordered by image.
        boxes: N boxes, ordered by image.
        num_images: Pictures in the micro-batch.
    """
    device = places.cell.device
    index = torch.arange(len(places), device=device)
    if is_countable(places.cell):
        box_counts = torch.bincount(boxes.image, minlength=num_images)
        images = box_counts.argsort()  # of the groups
        group = torch.empty_like(images).scatter_(0, images, torch.arange(num_images))  # of the images
        column, column_counts = _columns_by_image(places, index, num_images)
        heights = tuple(box_counts[images].tolist())
        widths = tuple(_whole_blocks(count) for count in column_counts[images].tolist())
        number = torch.arange(len(boxes))
        box = number.new_full((num_images, heights[-1]), len(boxes))
        box[group[boxes.image], number - (box_counts.cumsum(0) - box_counts)[boxes.image]] = number
        position = group[places.image] * max(widths) + column
    else:
        heights, widths = (len(boxes),), (_whole_blocks(len(places)),)
        box = torch.arange(len(boxes), device=device)[None]
        column = position = index
    shape = (len(widths), max(widths))
    candidate = index.new_zeros(shape)
    candidate.view(-1)[position] = index
    empty = torch.ones(shape, dtype=torch.bool, device=device)
    empty.view(-1)[position] = ~places.valid
    first = index.new_zeros(shape)
    first.view(-1)[position] = column[_first_on_cell(places, index)]
    return Arrangement(heights, widths, box, candidate, empty, first, position, not is_countable(places.cell))


def _columns_by_image(places: Places, index: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """Each candidate's number inside its image (n,), and the candidates of each image (images,)."""
    num_levels = len(places.level_sizes)
    level = torch.arange(num_levels).repeat_interleave(torch.tensor(places.level_sizes))
    part = level * num_images + places.image  # (n,) which level and image
    sizes = torch.bincount(part, minlength=num_levels * num_images).view(num_levels, num_images)
    part_start = sizes.flatten().cumsum(0).view_as(sizes) - sizes  # among all candidates
    part_column = sizes.cumsum(0) - sizes  # among the image's candidates
    return index + (part_column - part_start).flatten()[part], sizes.sum(0)


def _first_on_cell(places: Places, index: Tensor) -> Tensor:
    """For each candidate, the first one on the same cell: (n,)."""
    repeats = places.cell[1:] == places.cell[:-1]
    if not is_countable(repeats):
        repeats &= places.valid[1:] & places.valid[:-1]
    begins = index.clone()
    begins[1:].masked_fill_(repeats, 0)
    return begins.cummax(0).values


def _whole_blocks(count: int) -> int:
    return -(-count // BLOCK) * BLOCK
