"""What a candidate costs a box of a class, apart from the overlap of the boxes.

The class cost of the dynamic matching is the binary cross-entropy between y_c = sqrt(sigmoid(class_c) sigmoid(object))
and the one-hot class of the box, summed over classes. Per (box, candidate) pair that would be C numbers. But it
splits: sum_c -log(1 - y_c) belongs to the candidate alone, and the box only takes away log(y / (1 - y)) at its own
class. So a table of classes x candidates answers every pair with one look-up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOGIT_LIMIT = 80.0  # exp(80) and its inverse are normal float32 numbers; beyond it a sigmoid is 0 or 1 to any purpose
PUBLISHED_INFINITY = 1e30
PUBLISHED_NAN = 2e30


def class_cost_(objectness: Tensor, classes: Tensor) -> Tensor:
    """Class cost, exact where scores saturate: the candidate's own part, less log(odds) at the box's class.

    With p = sigmoid(object), a = sqrt(p), u = exp(-class) and w = sqrt(1 + u), the score y is a / w, and since
    w^2 - a^2 = u + (1 - p), nothing need be subtracted: 1 / (1 - y) = w (w + a) / (u + 1 - p), and the odds
    y / (1 - y) are a (w + a) / (u + 1 - p). Their factor a goes into the candidate's own part.

    Args:
        objectness: (m,) logits of m candidates.
        classes: (C, m) logits; replaced by the odds / a.

    Returns:
        (m,) sum over classes of -log(1 - y), less log(a).
    """
    objectness = objectness.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    unlikely = torch.sigmoid(-objectness)  # 1 - p
    root = objectness.sigmoid_().sqrt_()  # a
    inverse_odds = classes.clamp_(-LOGIT_LIMIT, LOGIT_LIMIT).neg_().exp_()  # u
    certainty = (inverse_odds + 1.0).sqrt_()  # w
    odds = certainty + root
    certainty.mul_(odds).div_(inverse_odds.add_(unlikely))  # 1 / (1 - y)
    torch.div(odds, inverse_odds, out=classes)
    return certainty.log_().sum(0) - root.log_()


def published_class_cost_(objectness: Tensor, classes: Tensor) -> Tensor:
    """Class cost as the published implementation computes it, with its failure where scores saturate.

    It turns y into a logit and takes the cross-entropy of that: for y = 1 in the floating type (from logit 17 in
    float32) the box's own class costs NaN and every other infinity, and for y = 0 all cost NaN, so that the best
    candidates come last. Here infinity is a large number and NaN a larger one; at the box's own class, where the
    odds have no logarithm, the caller still meets NaN.

    Args:
        objectness: (m,) logits of m candidates.
        classes: (C, m) logits; replaced by the odds y / (1 - y), NaN for y = 0 and y = 1.

    Returns:
        (m,) sum over classes of -log(1 - y).
    """
    score = (classes.sigmoid() * objectness.sigmoid()).sqrt_()
    logit = torch.div(score, 1.0 - score, out=classes).log()
    alone = F.binary_cross_entropy_with_logits(logit, torch.zeros_like(logit), reduction="none").sum(0)
    classes.masked_fill_((score == 1.0) | (score == 0.0), torch.nan)
    return alone.nan_to_num_(nan=PUBLISHED_NAN, posinf=PUBLISHED_INFINITY)
