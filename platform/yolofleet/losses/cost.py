"""What a candidate costs a box of a class, apart from the overlap of the boxes.

The class cost of the dynamic matching is the binary cross-entropy between y_c = sqrt(sigmoid(class_c) sigmoid(object))
and the one-hot class of the box, summed over classes. Per (box, candidate) pair that would be C numbers. But it
splits: sum_c -log(1 - y_c) belongs to the candidate alone, and the box only takes away log(y / (1 - y)) at its own
class. So a table of candidates x classes answers every pair with one look-up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from yolofleet.losses.predictions import FIRST_CLASS, OBJECTNESS

LOGIT_LIMIT = 80.0  # exp(80) and its inverse are normal float32 numbers; beyond it a sigmoid is 0 or 1 to any purpose
PUBLISHED_INFINITY = 1e30
PUBLISHED_NAN = 2e30


def class_cost_(rows: Tensor, scratch: Tensor) -> Tensor:
    """Class cost, exact where scores saturate: the candidate's own part, less log(odds) at the box's class.

    With p = sigmoid(object) and u = exp(-class), y^2 = p / (1 + u). Since 1 - y^2 = (u + 1 - p) / (1 + u), nothing
    need be subtracted: the odds y / (1 - y) are a (sqrt(1 + u) + a) / (u + 1 - p) with a = sqrt(p), and 1 / (1 - y)
    is one more. Whole rows are worked on, for memory without gaps takes half the time.

    Args:
        rows: (m, 5 + C) raw predictions of m candidates; replaced by the odds, where they are of classes.
        scratch: (m, 5 + C) overwritten.

    Returns:
        (m,) sum over classes of -log(1 - y).
    """
    objectness = rows[:, OBJECTNESS, None].clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    unlikely, root = torch.sigmoid(-objectness), objectness.sigmoid_().sqrt_()  # 1 - p, a: (m, 1)
    inverse_odds = rows.clamp_(-LOGIT_LIMIT, LOGIT_LIMIT).neg_().exp_()  # u
    above = torch.add(inverse_odds, 1.0, out=scratch).sqrt_().add_(root)
    odds = torch.div(above, inverse_odds.add_(unlikely), out=rows).mul_(root)
    return torch.add(odds, 1.0, out=scratch).log_()[:, FIRST_CLASS:].sum(1)


def published_class_cost_(rows: Tensor, scratch: Tensor) -> Tensor:
    """Class cost as the published implementation computes it, with its failure where scores saturate.

    It turns y into a logit and takes the cross-entropy of that: for y = 1 in the floating type (from logit 17 in
    float32) the box's own class costs NaN and every other infinity, and for y = 0 all cost NaN, so that the best
    candidates come last. Here infinity is a large number and NaN a larger one; at the box's own class, where the
    odds have no logarithm, the caller still meets NaN.

    Args:
        rows: (m, 5 + C) raw predictions of m candidates; of classes replaced by the odds y / (1 - y), NaN for y = 0
            and y = 1.
        scratch: (m, 5 + C) overwritten.

    Returns:
        (m,) sum over classes of -log(1 - y).
    """
    classes, score = rows[:, FIRST_CLASS:], scratch[:, FIRST_CLASS:]
    torch.mul(classes.sigmoid(), rows[:, OBJECTNESS, None].sigmoid(), out=score).sqrt_()
    logit = torch.div(score, 1.0 - score, out=classes).log()
    alone = F.binary_cross_entropy_with_logits(logit, torch.zeros_like(logit), reduction="none").sum(1)
    classes.masked_fill_((score == 1.0) | (score == 0.0), torch.nan)
    return alone.nan_to_num_(nan=PUBLISHED_NAN, posinf=PUBLISHED_INFINITY)
