"""Label assigners (section 4.2, Figure 5, Table 6): which places of which head answer for which box.

* `none`: the lead head alone.
* `independent`: each head is matched by its own predictions.
* `lead`: the lead head's predictions give one set of positives for both heads.
* `coarse_to_fine`: the lead head's predictions give two sets, a fine one for the lead head and, from more cells
  around each box, a coarse one for the auxiliary head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolofleet.losses.arrangement import arrange
from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Places, search_candidates
from yolofleet.losses.levels import Levels
from yolofleet.losses.matching import match
from yolofleet.losses.predictions import read_rows
from yolofleet.losses.settings import Assigner, Matching
from yolofleet.losses.workspace import Workspace

FINE_REACH = 0.5
NUM_BEST_WITHOUT_AUXILIARY = 10  # overlaps that make up k, as published
NUM_BEST_WITH_AUXILIARY = 20


@dataclass(frozen=True)
class Assignment:
    """Positives of each head, on the predictions' device.

    Attributes:
        lead: Positives of the lead levels.
        auxiliary: Positives of the auxiliary levels, counted from 0 as the lead's; None without auxiliary head.
    """

    lead: Places
    auxiliary: Places | None


@dataclass(frozen=True, kw_only=True)
class LabelAssigner:
    """Chooses the positives of a micro-batch.

    Attributes:
        assigner: Who guides the auxiliary head.
        matching: `dynamic` chooses among the candidates by cost, `fixed` takes every candidate.
        relaxation: How near to a neighbouring cell a box's centre must be for the coarse set, in cells. The fine
            set has 0.5 and the published coarse set 1.0.
        ratio_limit: A box and an anchor fit when neither side differs by this factor or more.
        published_quirks: Reproduce the published implementation where it is wrong.
        workspace: Scratch memory.
    """

    assigner: Assigner
    matching: Matching
    relaxation: float
    ratio_limit: float
    published_quirks: bool
    workspace: Workspace

    @torch.no_grad()
    def assign(
        self, lead: Sequence[Tensor], auxiliary: Sequence[Tensor], boxes: Boxes, near: Levels, far: Levels
    ) -> Assignment:
        """Assign the boxes of a micro-batch.

        Args:
            lead: Lead predictions, (B, A, H, W, 5 + C) a level.
            auxiliary: Auxiliary predictions of the same shapes; not looked at with `none`.
            boxes: The ground truth.
            near: The lead levels where the boxes are.
            far: The lead levels where the predictions are.
        """
        if self.assigner == "none":
            return Assignment(self._choose(lead, boxes, near, far, FINE_REACH), None)
        fine = self._choose(lead, boxes, near, far, FINE_REACH)
        if self.assigner == "lead":
            return Assignment(fine, fine)
        if self.assigner == "independent":
            return Assignment(fine, self._choose(auxiliary, boxes, near, far, FINE_REACH))
        return Assignment(fine, self._choose(lead, boxes, near, far, self.relaxation))

    def _choose(self, guide: Sequence[Tensor], boxes: Boxes, near: Levels, far: Levels, reach: float) -> Places:
        places = search_candidates(boxes, near, reach=reach, ratio_limit=self.ratio_limit)
        device = guide[0].device
        if self.matching == "fixed":
            return places.to(device)
        arrangement = arrange(places, boxes, guide[0].shape[0]).to(device)
        places = places.to(device)
        box = match(
            boxes.to(device),
            places,
            arrangement,
            read_rows(guide, places.cell, places.level_sizes, self.workspace),
            far,
            num_best=NUM_BEST_WITHOUT_AUXILIARY if self.assigner == "none" else NUM_BEST_WITH_AUXILIARY,
            published_quirks=self.published_quirks,
            workspace=self.workspace,
        )
        matched = box < len(boxes)
        return places.chosen(torch.where(matched, box, places.box), matched)
