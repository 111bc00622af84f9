"""The three terms of the loss: box, objectness, class.

Each is a sum over levels of means inside the level, so all levels are computed together and a positive counts with
the inverse of its level's number of positives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from yolofleet.losses.boxes import Boxes, BoxFit, complete_iou, decode_centre, decode_size
from yolofleet.losses.candidates import Places
from yolofleet.losses.hosting import is_countable
from yolofleet.losses.levels import Levels
from yolofleet.losses.settings import LossSettings

FOCAL_ALPHA = 0.25  # Lin et al. 2017, "Focal loss for dense object detection", and the published implementation
FOCAL_FLOOR = 1e-12  # the gradient of a power below 1 has no limit at 0


def box_fit(logits: Tensor, places: Places, boxes: Boxes, levels: Levels, alpha: Tensor | None = None) -> BoxFit:
    """CIoU between each positive's prediction and its box, in cells of its level and from the place's cell.

    Args:
        logits: (n, 5 + C) raw predictions of the positives.
        places: n positives.
        boxes: N boxes.
        levels: The levels that the places' priors belong to.
        alpha: (n,) aspect trade-off to hold fixed; by default computed.
    """
    share = logits[:, :4].sigmoid()
    found = torch.cat([decode_centre(share[:, :2]), decode_size(share[:, 2:], levels.prior_anchors[places.prior])], 1)
    wanted = boxes.xywh[places.box] * levels.prior_grid[places.prior].repeat(1, 2)
    wanted[:, :2] -= torch.stack([places.column, places.row], 1)
    return complete_iou(found, wanted, alpha)


def level_weights(places: Places, factors: Sequence[float], dtype: torch.dtype) -> Tensor:
    """What each slot counts: its level's factor / the level's number of positives; 0 for slots not in use: (n,)."""
    sizes = list(places.level_sizes)
    if is_countable(places.valid):
        return spread([factor / max(size, 1) for factor, size in zip(factors, sizes, strict=True)], places, dtype)
    counts = [valid.sum().clamp(min=1).to(dtype) for valid in torch.split(places.valid, sizes)]
    weights = [factor / count for factor, count in zip(factors, counts, strict=True)]
    return torch.cat([weight.expand(size) for weight, size in zip(weights, sizes, strict=True)]) * places.valid


def spread(numbers: Sequence[float], places: Places, dtype: torch.dtype) -> Tensor:
    """One number a level, repeated for each slot of the level: (n,)."""
    if is_countable(places.cell):
        return torch.from_numpy(np.repeat(numbers, places.level_sizes)).to(dtype)
    pairs = zip(numbers, places.level_sizes, strict=True)
    full = [torch.full((size,), number, dtype=dtype, device=places.cell.device) for number, size in pairs]
    return torch.cat(full)


def box_term(quality: Tensor, weights: Tensor) -> Tensor:
    """Sum over levels of mean(1 - CIoU)."""
    return ((1.0 - quality) * weights).sum()


def _last_on_cell(places: Places) -> Tensor:
    """Which slots in use are the last of their cell: (n,). The slots of a cell are neighbours."""
    if is_countable(places.cell):
        return F.pad(places.cell[1:] != places.cell[:-1], (0, 1), value=True)[: len(places)]  # all are in use
    index = torch.arange(len(places), device=places.cell.device)
    begins = index.clone()
    begins[1:].masked_fill_(places.cell[1:] == places.cell[:-1], 0)
    run = begins.cummax(0).values  # first slot on the same cell
    used = torch.where(places.valid, index, -1)
    last = torch.full_like(index, -1).scatter_reduce_(0, run, used, "amax")
    return places.valid & (last.index_select(0, run) == index)


def objectness_term(
    logits: Tensor,
    positive_logits: Tensor,
    wanted: Tensor,
    places: Places,
    level_cells: Sequence[int],
    factors: Sequence[float],
    settings: LossSettings,
) -> Tensor:
    """Sum over levels of factor x mean cross-entropy over all cells of the level.

    The target of a positive's cell is what is wanted there, that of any other cell 0. So all cells are priced for the
    target 0, and the few with a positive are corrected; a cell that stands for several boxes follows the last one.

    Args:
        logits: Objectness of the cells of all levels.
        positive_logits: (n,) objectness of the positives.
        wanted: (n,) targets of the positives.
        places: n positives.
        level_cells: Cells (image, anchor, row, column) of each level.
        factors: Factor of each level.
        settings: Positive weight and focal exponent.
    """
    weights = [factor / cells for factor, cells in zip(factors, level_cells, strict=True)]
    levels = torch.split(_entropy_of_background(logits, settings.focal_gamma), list(level_cells))
    background = torch.stack([level.sum() * weight for level, weight in zip(levels, weights, strict=True)]).sum()
    entropy = cross_entropy(
        positive_logits, wanted, settings.objectness_positive_weight, settings.focal_gamma
    ) - _entropy_of_background(positive_logits, settings.focal_gamma)
    return background + (entropy * (spread(weights, places, entropy.dtype) * _last_on_cell(places))).sum()


def class_term(
    logits: Tensor, label: Tensor, weights: Tensor, settings: LossSettings, class_weights: Tensor | None
) -> Tensor:
    """Sum over levels of the mean cross-entropy over positives x classes; 0 for a single class.

    Args:
        logits: (n, C) class logits of the positives.
        label: (n,) class wanted.
        weights: (n,) from `level_weights`.
        settings: Positive weight, focal exponent and label smoothing.
        class_weights: (C,) factor of the term for positives of each class.
    """
    num_classes = logits.shape[1]
    if num_classes == 1:
        return logits.sum() * 0.0
    smoothing = settings.label_smoothing
    target = torch.full_like(logits, smoothing / 2).scatter_(1, label[:, None], 1.0 - smoothing / 2)
    entropy = cross_entropy(logits, target, settings.class_positive_weight, settings.focal_gamma).mean(1)
    if class_weights is not None:
        weights = weights * class_weights[label]
    return (entropy * weights).sum()


def cross_entropy(logits: Tensor, target: Tensor, positive_weight: float, focal_gamma: float) -> Tensor:
    """Binary cross-entropy of soft targets, entry by entry; with focal_gamma > 0 its focal form.

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


def _entropy_of_background(logits: Tensor, focal_gamma: float) -> Tensor:
    """`cross_entropy` for targets of 0, which positive weights do not touch."""
    entropy = F.softplus(logits, threshold=50.0)  # the default leaves the logarithm out from 20 on
    if focal_gamma == 0.0:
        return entropy
    return entropy * (1.0 - FOCAL_ALPHA) * logits.sigmoid().clamp(min=FOCAL_FLOOR) ** focal_gamma
