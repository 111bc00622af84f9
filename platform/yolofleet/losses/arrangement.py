"""How candidates and boxes are laid out for comparing them: groups of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Places
from yolofleet.losses.hosting import is_countable, send

BLOCK = 8


@dataclass(frozen=True)
class Arrangement:
    """G groups, each a table with a row for each of its boxes and a column for each of its candidates.

    In host memory a group is an image, and the groups are ordered by their number of boxes, so that neighbours are
    of like size. On a device, where the number of candidates of an image is not known to the host, one group holds
    all boxes and all candidates.

    Attributes:
        heights: Boxes of each group, ascending.
        widths: Columns of each group, whole blocks of `BLOCK`.
        box: (G, highest) the box of each row, N for none.
        order: (n,) the candidates, group after group. Where a candidate stands here is its position.
        start: (G,) position of each group's first candidate.
        empty: (G, widest) whether a column has no candidate.
        is_shared: Whether a group holds several images.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    box: Tensor
    order: Tensor
    start: Tensor
    empty: Tensor
    is_shared: bool

    def to(self, device: torch.device) -> Arrangement:
        """The same arrangement for candidates on another device, sent as one table without waiting."""
        if self.box.device == device:
            return self
        parts = (self.box, self.order, self.start, self.empty)
        flat = send(torch.cat([part.flatten().long() for part in parts]), device)
        sent = torch.split(flat, [part.numel() for part in parts])
        box, order, start, empty = (table.view(part.shape) for table, part in zip(sent, parts, strict=True))
        return replace(self, box=box, order=order, start=start, empty=empty.bool())


def arrange(places: Places, boxes: Boxes, num_images: int) -> Arrangement:
    """Lay out candidates and boxes by image where their number can be looked at, else all in one group.

    Args:
        places: n candidates; inside a level they are ordered by image.
        boxes: N boxes, ordered by image.
        num_images: Images in the micro-batch.
    """
    if not is_countable(places.cell):
        device = places.cell.device
        return Arrangement(
            heights=(len(boxes),),
            widths=(-(-len(places) // BLOCK) * BLOCK,),
            box=torch.arange(len(boxes), device=device)[None],
            order=torch.arange(len(places), device=device),
            start=torch.zeros(1, dtype=torch.long, device=device),
            empty=pad(~places.valid, (0, -len(places) % BLOCK), value=True)[None],
            is_shared=True,
        )
    image = places.image.numpy()
    box_counts = np.bincount(boxes.image.numpy(), minlength=num_images)
    images = box_counts.argsort(kind="stable")  # of the groups
    group = np.empty_like(images)  # of the images
    group[images] = np.arange(num_images)
    heights, counts = box_counts[images], np.bincount(image, minlength=num_images)[images]
    widths = -(-counts // BLOCK) * BLOCK
    rows, columns = np.arange(heights.max()), np.arange(widths.max())
    first_box = (box_counts.cumsum() - box_counts)[images]
    box = np.where(rows < heights[:, None], first_box[:, None] + rows, len(boxes))
    return Arrangement(
        heights=tuple(heights.tolist()),
        widths=tuple(widths.tolist()),
        box=torch.from_numpy(box),
        order=torch.from_numpy(group.astype(np.int16)[image].argsort(kind="stable")),
        start=torch.from_numpy(counts.cumsum() - counts),
        empty=torch.from_numpy(columns >= counts[:, None]),
        is_shared=False,
    )
