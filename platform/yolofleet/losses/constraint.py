"""The upper-bound constraint of Table 7: how high the objectness target of a coarse-only cell may be.

The paper caps the objectness of the extra coarse cells "by the distance from the center of the object" so that they
never reach what the fine cells can. It gives no formula. Here the cap falls linearly with the distance d, in cells,
between the cell's centre and the object's: 1 - d / 2, and 0 from two cells on. A place that only the coarse search
offers is 1.0 to 1.6 cells from its own object, so its target is at most 0.5, and 0.2 at the far end. With dynamic
matching a box may also answer at a place that another box offered: nearer than that, where the cap is higher, or so
far that nothing is left. What the lead head holds is not capped at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Places
from yolofleet.losses.levels import Levels

REACH = 2.0  # cells from the object's centre at which nothing is left of the target


def objectness_cap(distance: Tensor) -> Tensor:
    """Highest objectness target at a distance from the object's centre, in cells: 1 - distance / 2, at least 0."""
    return (1.0 - distance / REACH).clamp(min=0.0)


def coarse_only_caps(lead: Places, auxiliary: Places, boxes: Boxes, levels: Levels) -> Tensor:
    """Cap of each auxiliary positive's objectness target: (n,); 1 where the lead head holds the cell too.

    Args:
        lead: Positives of the lead head.
        auxiliary: n positives of the auxiliary head, cells counted as the lead's.
        boxes: The ground truth, where the places are.
        levels: The lead levels, where the places are.
    """
    num_cells = levels.starts[-1]
    held = lead.valid.new_zeros(num_cells + 1)  # the last entry takes what is not in use
    held[torch.where(lead.valid, lead.cell, num_cells)] = True
    centre = boxes.xywh[auxiliary.box, :2] * levels.prior_grid[auxiliary.prior]
    cell_centre = torch.stack([auxiliary.column, auxiliary.row], 1) + 0.5
    cap = objectness_cap((centre - cell_centre).square().sum(1).sqrt())
    return torch.where(held[auxiliary.cell], 1.0, cap)
