"""The three terms of the loss (box, objectness, class), the cap of Table 7, and the numbers of both.

Each is a sum over levels of means inside the level, so all levels are computed together and a positive counts with
the inverse of its level's number of positives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from yolofleet.losses.boxes import Boxes, BoxFit, complete_iou, decode_centre, decode_size
from yolofleet.losses.candidates import Candidates
from yolofleet.losses.levels import Levels

Matching = Literal["dynamic", "fixed"]

MATCHINGS: tuple[Matching, ...] = get_args(Matching)
FOCAL_ALPHA = 0.25  # Lin et al. 2017, "Focal loss for dense object detection", and the published implementation
CAP_REACH = 2.0  # cells from the object's centre at which nothing is left of the target
FOCAL_FLOOR = 1e-12  # the gradient of a power below 1 has no limit at 0

# The published name of each number: its attribute here, and the lowest and highest value.
HYPERPARAMETERS = {
    "box": ("box_gain", 0.0, math.inf),
    "cls": ("class_gain", 0.0, math.inf),
    "obj": ("objectness_gain", 0.0, math.inf),
    "cls_pw": ("class_positive_weight", 0.0, math.inf),
    "obj_pw": ("objectness_positive_weight", 0.0, math.inf),
    "fl_gamma": ("focal_gamma", 0.0, math.inf),
    "anchor_t": ("anchor_ratio_limit", 1.0, math.inf),
    "label_smoothing": ("label_smoothing", 0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The numbers of the detection loss; gains are already scaled (`yolofleet.losses.scaled_gains`)."""

    box_gain: float
    """Factor of the box term (`box`)."""
    class_gain: float
    """Factor of the class term (`cls`)."""
    objectness_gain: float
    """Factor of the objectness term (`obj`)."""
    class_positive_weight: float = 1.0
    """Weight of the positive class in the class term (`cls_pw`)."""
    objectness_positive_weight: float = 1.0
    """Weight of positives in the objectness term (`obj_pw`)."""
    focal_gamma: float = 0.0
    """Exponent of the focal loss on both cross-entropies; 0 is plain cross-entropy (`fl_gamma`)."""
    anchor_ratio_limit: float = 4.0
    """A box and an anchor fit when their widths and their heights differ by less than this factor (`anchor_t`)."""
    label_smoothing: float = 0.0
    """Share of a class target given up evenly: targets are 1 - s/2 and s/2 (`label_smoothing`)."""

    def __post_init__(self) -> None:
        for key, (name, lowest, highest) in HYPERPARAMETERS.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and lowest <= value <= highest):
                raise ValueError(f"hyper-parameter {key} is {value}; it must be a number from {lowest} to {highest}")

    @classmethod
    def from_hyperparameters(cls, hyperparameters: Mapping[str, float]) -> LossSettings:
        """Read the published names; `box`, `cls` and `obj` must be there, keys that are not the loss's are ignored.

        Raises:
            ValueError: A gain is missing, or a value is out of range.
        """
        missing = [key for key in ("box", "cls", "obj") if key not in hyperparameters]
        if missing:
            raise ValueError(f"hyper-parameters for the loss lack {', '.join(missing)}; every recipe has them")
        known = [(key, name) for key, (name, _, _) in HYPERPARAMETERS.items() if key in hyperparameters]
        return cls(**{name: float(hyperparameters[key]) for key, name in known})


def level_balance(num_levels: int) -> tuple[float, ...]:
    """The published factor of each level's objectness mean: fine levels have many cells and few objects."""
    if num_levels == 3:
        return (4.0, 1.0, 0.4)
    factors = (4.0, 1.0, 0.25, 0.06, 0.02)
    if not 1 <= num_levels <= len(factors):
        raise ValueError(f"objectness balance is known for 1 to {len(factors)} levels, the detector has {num_levels}")
    return factors[:num_levels]


def scaled_gains(
    hyperparameters: Mapping[str, float], num_classes: int, num_levels: int, image_size: int
) -> dict[str, float]:
    """Scale the recipe's gains as the published trainer does.

    box *= 3 / levels; cls *= classes / 80 x 3 / levels; obj *= (image size / 640)^2 x 3 / levels. The terms are sums
    over levels, the class term is a mean over classes, and the objectness term a mean over cells, whose number grows
    with the square of the image size.

    Args:
        hyperparameters: A recipe with `box`, `cls` and `obj`; every other key is passed through.
        num_classes: Classes of the detector.
        num_levels: Lead levels of the detector (3 for P5, 4 for P6).
        image_size: Side of the training images in pixels; for non-square images the longer side.

    Returns:
        A new mapping; the one given is unchanged.
    """
    share = 3.0 / num_levels
    return {
        **hyperparameters,
        "box": hyperparameters["box"] * share,
        "cls": hyperparameters["cls"] * num_classes / 80.0 * share,
        "obj": hyperparameters["obj"] * (image_size / 640.0) ** 2 * share,
    }


def compute_box_fit(
    logits: Tensor, positives: Candidates, boxes: Boxes, levels: Levels, alpha: Tensor | None = None
) -> BoxFit:
    """Compute the CIoU between each positive's prediction and its box, in cells of the level and from its own cell.

    `logits` (n, 5 + C) are raw predictions; `alpha` (n,) is an aspect trade-off to hold fixed, by default computed.
    """
    share = logits[:, :4].sigmoid()
    predicted = torch.cat(
        [decode_centre(share[:, :2]), decode_size(share[:, 2:], levels.prior_anchors[positives.prior])], 1
    )
    truth = boxes.xywh[positives.box] * levels.prior_grid[positives.prior].repeat(1, 2)
    truth[:, :2] -= torch.stack([positives.column, positives.row], 1)
    return complete_iou(predicted, truth, alpha)


def compute_level_weights(positives: Candidates, factors: Sequence[float], dtype: torch.dtype) -> Tensor:
    """What each slot counts: its level's factor / the level's number of positives; 0 for slots not in use: (n,)."""
    parts = torch.split(positives.valid, list(positives.level_sizes))
    pairs = zip(factors, (part.to(dtype) for part in parts), strict=True)
    return torch.cat([factor * part / part.sum().clamp(min=1) for factor, part in pairs])


def spread_over_slots(numbers: Sequence[float], positives: Candidates, like: Tensor) -> Tensor:
    """Repeat one number a level for each slot of the level: (n,)."""
    pairs = zip(numbers, positives.level_sizes, strict=True)
    return torch.cat([like.new_full((size,), number) for number, size in pairs])


def compute_box_term(quality: Tensor, weights: Tensor) -> Tensor:
    """Compute the sum over levels of mean(1 - CIoU)."""
    return ((1.0 - quality) * weights).sum()


def _find_last_on_cell(positives: Candidates) -> Tensor:
    """Which slots in use are the last of their cell: (n,). The slots of a cell are neighbours."""
    cell, index = positives.cell, torch.arange(len(positives), device=positives.cell.device)
    begins = index.clone()
    begins[1:].masked_fill_(cell[1:] == cell[:-1], 0)
    first = begins.cummax(0).values  # first slot on the same cell
    used = torch.where(positives.valid, index, -1)
    last = torch.full_like(index, -1).scatter_reduce_(0, first, used, "amax")
    return positives.valid & (last[first] == index)


def compute_objectness_term(
    logits: Tensor,
    positive_logits: Tensor,
    target: Tensor,
    positives: Candidates,
    level_cells: Sequence[int],
    factors: Sequence[float],
    settings: LossSettings,
) -> Tensor:
    """Compute the sum over levels of factor x mean cross-entropy over all cells of the level.

    The target of a cell without a positive is 0. So the entropy of all cells is computed for the target 0, and the few
    with a positive are corrected; a cell that answers for several boxes follows the last one.

    Args:
        logits: Objectness of the cells of all levels.
        positive_logits: (n,) objectness of the positives.
        target: (n,) targets of the positives.
        positives: n positives.
        level_cells: Cells (image, anchor, row, column) of each level.
        factors: Factor of each level.
        settings: Positive weight and focal exponent.
    """
    weights = [factor / cells for factor, cells in zip(factors, level_cells, strict=True)]
    levels = torch.split(_compute_background_entropy(logits, settings.focal_gamma), list(level_cells))
    background = torch.stack([level.sum() * weight for level, weight in zip(levels, weights, strict=True)]).sum()
    entropy = compute_cross_entropy(
        positive_logits, target, settings.objectness_positive_weight, settings.focal_gamma
    ) - _compute_background_entropy(positive_logits, settings.focal_gamma)
    return (
        background + (entropy * (spread_over_slots(weights, positives, entropy) * _find_last_on_cell(positives))).sum()
    )


def compute_class_term(
    logits: Tensor, label: Tensor, weights: Tensor, settings: LossSettings, class_weights: Tensor | None
) -> Tensor:
    """Compute the sum over levels of the mean cross-entropy over positives x classes; 0 for a single class.

    Args:
        logits: (n, C) class logits of the positives.
        label: (n,) class of the positive's box.
        weights: (n,) from `compute_level_weights`.
        settings: Positive weight, focal exponent and label smoothing.
        class_weights: (C,) factor of the term for positives of each class.
    """
    num_classes = logits.shape[1]
    if num_classes == 1:
        return logits.sum() * 0.0
    smoothing = settings.label_smoothing
    target = torch.full_like(logits, smoothing / 2).scatter_(1, label[:, None], 1.0 - smoothing / 2)
    entropy = compute_cross_entropy(logits, target, settings.class_positive_weight, settings.focal_gamma).mean(1)
    if class_weights is not None:
        weights = weights * class_weights[label]
    return (entropy * weights).sum()


def compute_cross_entropy(logits: Tensor, target: Tensor, positive_weight: float, focal_gamma: float) -> Tensor:
    """Compute the binary cross-entropy of soft targets, entry by entry; with focal_gamma > 0 its focal form.

    The focal form multiplies it by (1 - p_t)^gamma and by alpha_t, where p_t = t p + (1 - t)(1 - p) and
    alpha_t = t alpha + (1 - t)(1 - alpha), alpha = 0.25.
    """
    weight = None if positive_weight == 1.0 else torch.full((), positive_weight, device=logits.device)
    entropy = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")
    if focal_gamma == 0.0:
        return entropy
    probability = logits.sigmoid()
    correct = target * probability + (1.0 - target) * (1.0 - probability)
    alpha = target * FOCAL_ALPHA + (1.0 - target) * (1.0 - FOCAL_ALPHA)
    return entropy * alpha * (1.0 - correct).clamp(min=FOCAL_FLOOR) ** focal_gamma


def _compute_background_entropy(logits: Tensor, focal_gamma: float) -> Tensor:
    """`compute_cross_entropy` for targets of 0, which positive weights do not touch."""
    entropy = F.softplus(logits, threshold=50.0)  # the default leaves the logarithm out from 20 on
    if focal_gamma == 0.0:
        return entropy
    return entropy * (1.0 - FOCAL_ALPHA) * logits.sigmoid().clamp(min=FOCAL_FLOOR) ** focal_gamma


def compute_objectness_cap(distance: Tensor) -> Tensor:
    """Compute the highest objectness target at a distance from the object's centre, in cells: 1 - d / 2, at least 0.

    The paper caps the objectness of the extra coarse cells "by the distance from the center of the object" so that
    they never reach what the fine cells can. It gives no formula; this one falls linearly. A cell that only the coarse
    search finds is 1.0 to 1.6 cells from its object, so its target is at most 0.5. With dynamic matching a box may
    also learn a cell that was found for another box: closer, or so distant that its target is 0.
    """
    return (1.0 - distance / CAP_REACH).clamp(min=0.0)


def cap_coarse_cells(lead: Candidates, auxiliary: Candidates, boxes: Boxes, levels: Levels) -> Tensor:
    """Compute the cap of each auxiliary positive's objectness target (n,): 1 where the lead head holds the cell too.

    Boxes and levels are on the predictions' device; cells of both heads are counted alike.
    """
    num_cells = levels.starts[-1]
    held = lead.valid.new_zeros(num_cells + 1)  # the last entry takes what is not in use
    held[torch.where(lead.valid, lead.cell, num_cells)] = True
    centre = boxes.xywh[auxiliary.box, :2] * levels.prior_grid[auxiliary.prior]
    cell_centre = torch.stack([auxiliary.column, auxiliary.row], 1) + 0.5
    cap = compute_objectness_cap((centre - cell_centre).square().sum(1).sqrt())
    return torch.where(held[auxiliary.cell], 1.0, cap)
