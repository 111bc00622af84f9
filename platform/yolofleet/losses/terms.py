"""The three terms of the loss (box, objectness, class) and the cap of Table 7.

Each is a sum over levels of means inside the level, so all levels are computed together and a positive counts with
the inverse of its level's number of positives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from yolofleet.losses.boxes import Boxes, BoxFit, complete_iou, decode_centre, decode_size
from yolofleet.losses.candidates import Candidates
from yolofleet.losses.levels import Levels
from yolofleet.losses.settings import LossSettings

FOCAL_ALPHA = 0.25  # Lin et al. 2017, "Focal loss for dense object detection", and the published implementation
CAP_REACH = 2.0  # cells from the object's centre at which nothing is left of the target
FOCAL_FLOOR = 1e-12  # the gradient of a power below 1 has no limit at 0


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
