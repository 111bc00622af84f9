"""Label assigners (section 4.2, Figure 5, Table 6): which cells of which head answer for which box.

An assigner is a function from a `Scene` to an `Assignment`; `register_assigner` registers it under a name for jobs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from yolofleet.losses.batched_matching import group_by_image, match_batched
from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Candidates, search_candidates
from yolofleet.losses.levels import Levels, read_rows
from yolofleet.losses.matching import prepare_matching
from yolofleet.losses.terms import Matching
from yolofleet.specs.assignment import ASSIGNERS, RegisteredAssigner

FINE_REACH = 0.5
NUM_BEST_WITHOUT_AUXILIARY = 10  # overlaps that make up k, as published
NUM_BEST_WITH_AUXILIARY = 20


@dataclass(frozen=True)
class Assignment:
    """Positives of each head, on the predictions' device."""

    lead: Candidates
    """Positives of the lead levels."""
    auxiliary: Candidates | None
    """Positives of the auxiliary levels, counted from 0 as the lead's; None without auxiliary head."""


@dataclass(frozen=True, kw_only=True)
class LabelAssigner:
    """Chooses the positives of a micro-batch."""

    function: Callable[[Scene], Assignment]
    """The assigner's function."""
    registered: RegisteredAssigner
    """Whether it uses auxiliary heads, and whether these have a coarse set."""
    matching: Matching
    """`dynamic` chooses among the candidates by cost, `fixed` takes every candidate."""
    relaxation: float
    """How close to a neighbouring cell a box's centre must be for the coarse set, in cells. The fine set has 0.5 and
    the published coarse set 1.0."""
    ratio_limit: float
    """A box and an anchor fit when neither side differs by this factor or more."""
    published_quirks: bool
    """Reproduce the published implementation where it is wrong."""

    @torch.no_grad()
    def assign(self, scene: Scene) -> Assignment:
        """Assign the boxes of a micro-batch."""
        return self.function(scene)


@dataclass(frozen=True)
class Scene:
    """What an assigner sees of a micro-batch."""

    settings: LabelAssigner
    """How to search and match."""
    lead: Sequence[Tensor]
    """Lead predictions, (B, A, H, W, 5 + C) a level."""
    auxiliary: Sequence[Tensor]
    """Auxiliary predictions of the same shapes; none where the assigner does not use them."""
    boxes: Boxes
    """The ground truth."""
    box_levels: Levels
    """The lead levels where the boxes are."""
    levels: Levels
    """The lead levels where the predictions are."""

    def padded(self) -> Scene | None:
        """Return the scene with as many boxes for each image, where the predictions are; None if there are too many."""
        boxes = self.boxes.padded(self.lead[0].shape[0])
        return None if boxes is None else replace(self, boxes=boxes.to(self.levels.grid.device), box_levels=self.levels)

    def choose(self, guide: Sequence[Tensor], reach: float) -> Candidates:
        """Choose positives by the predictions of a head.

        Args:
            guide: Predictions of the head.
            reach: How close to a neighbouring cell a box's centre must be, in cells.
        """
        settings, device, num_images = self.settings, guide[0].device, guide[0].shape[0]
        found = search_candidates(self.boxes, self.box_levels, reach=reach, ratio_limit=settings.ratio_limit)
        candidates = found.to(device)
        if settings.matching == "fixed":
            return candidates
        groups = group_by_image(self.boxes, found, num_images, device)
        rows = read_rows(guide, candidates.cell, candidates.level_sizes)
        pairs = prepare_matching(self.boxes.to(device), candidates, rows, self.levels, settings.published_quirks)
        num_best = NUM_BEST_WITH_AUXILIARY if settings.registered.uses_auxiliary else NUM_BEST_WITHOUT_AUXILIARY
        box = match_batched(pairs, groups, num_best, settings.published_quirks)
        is_positive = box < len(self.boxes)
        return candidates.choose(torch.where(is_positive, box, candidates.box), is_positive)


def assign_lead_alone(scene: Scene) -> Assignment:
    """Match the lead head by its own predictions; there is no other head."""
    return Assignment(scene.choose(scene.lead, FINE_REACH), None)


def assign_independent(scene: Scene) -> Assignment:
    """Match each head by its own predictions."""
    return Assignment(scene.choose(scene.lead, FINE_REACH), scene.choose(scene.auxiliary, FINE_REACH))


def assign_lead_guided(scene: Scene) -> Assignment:
    """Give both heads the positives that the lead head's predictions choose."""
    fine = scene.choose(scene.lead, FINE_REACH)
    return Assignment(fine, fine)


def assign_coarse_to_fine(scene: Scene) -> Assignment:
    """Let the lead head's predictions choose a fine set for itself and a coarse one for the auxiliary head."""
    coarse_reach = scene.settings.relaxation
    return Assignment(scene.choose(scene.lead, FINE_REACH), scene.choose(scene.lead, coarse_reach))


def load_assigner(registered: RegisteredAssigner) -> Callable[[Scene], Assignment]:
    """Return the function of a registered assigner."""
    module, _, name = registered.function.partition(":")
    function: Callable[[Scene], Assignment] = getattr(importlib.import_module(module), name)
    return function


def register_assigner(
    name: str, *, uses_auxiliary: bool = True, has_coarse_set: bool = False
) -> Callable[[Callable[[Scene], Assignment]], Callable[[Scene], Assignment]]:
    """Return a decorator that registers a function as an assigner which a job can name.

    Args:
        name: Its name in a job, ``assignment.assigner``.
        uses_auxiliary: Whether it needs a model with auxiliary heads.
        has_coarse_set: Whether the auxiliary heads learn cells that the lead head does not, which a constraint can cap.

    Raises:
        UserError: The name is taken.
    """

    def add(function: Callable[[Scene], Assignment]) -> Callable[[Scene], Assignment]:
        where = f"{function.__module__}:{function.__qualname__}"
        ASSIGNERS.register(name)(
            RegisteredAssigner(function=where, uses_auxiliary=uses_auxiliary, has_coarse_set=has_coarse_set)
        )
        return function

    return add
