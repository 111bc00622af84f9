"""How candidates are laid out for comparing them with boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from yolofleet.losses.candidates import Places
from yolofleet.losses.hosting import is_countable, send
from yolofleet.losses.selection import BLOCK


@dataclass(frozen=True)
class Arrangement:
    """A table of groups x width columns with a column for each candidate.

    In host memory a group is an image, and a box is compared with its image's candidates. On a device, where the
    number of candidates of an image is not known to the host, one group holds all of them.

    Attributes:
        num_groups: Groups of the table.
        width: Columns of a group, a multiple of `selection.BLOCK`.
        slot: (n,) each candidate's index in the flattened table. Candidates on one cell have adjacent slots.
        is_shared: Whether a group holds candidates of several images.
    """

    num_groups: int
    width: int
    slot: Tensor
    is_shared: bool

    def to(self, device: torch.device) -> Arrangement:
        """The same arrangement for candidates on another device."""
        return replace(self, slot=send(self.slot, device))


def arrange(places: Places, num_images: int) -> Arrangement:
    """Lay out candidates by image where their number can be looked at, else all in one group.

    Args:
        places: n candidates; inside a level they are ordered by image.
        num_images: Pictures in the micro-batch.
    """
    count, device = len(places), places.cell.device
    index = torch.arange(count, device=device)
    if not is_countable(places.cell):
        return Arrangement(1, _whole_blocks(count), index, is_shared=True)
    num_levels = len(places.level_sizes)
    level = torch.arange(num_levels).repeat_interleave(torch.tensor(places.level_sizes))
    part = level * num_images + places.image  # (n,) which level and image
    sizes = torch.bincount(part, minlength=num_levels * num_images).view(num_levels, num_images)
    width = _whole_blocks(int(sizes.sum(0).max()))
    part_start = sizes.flatten().cumsum(0).view_as(sizes) - sizes  # among all candidates
    part_column = sizes.cumsum(0) - sizes  # among the image's candidates
    slot = places.image * width + index + (part_column - part_start).flatten()[part]
    return Arrangement(num_images, width, slot, is_shared=False)


def first_of_cell(places: Places, arrangement: Arrangement) -> Tensor:
    """For each column of the flattened table, the first column on the same cell: (groups x width,).

    A cell that several boxes offer is several candidates, equal in every respect.
    """
    index = torch.arange(len(places), device=places.cell.device)
    repeats = (places.cell[1:] == places.cell[:-1]) & (places.prior[1:] == places.prior[:-1])
    repeats &= places.valid[1:] & places.valid[:-1]
    begins = index.clone()
    begins[1:].masked_fill_(repeats, 0)
    first = arrangement.slot[begins.cummax(0).values]
    table = torch.arange(arrangement.num_groups * arrangement.width, device=index.device)
    table[arrangement.slot] = first
    return table


def _whole_blocks(count: int) -> int:
    return -(-count // BLOCK) * BLOCK
