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


def class_cost_(class_logits: Tensor, objectness_logits: Tensor, odds: Tensor) -> Tensor:
    """Class cost, exact where scores saturate: the candidate's own part, less log(odds) at the box's class.

    With s = sigmoid(class), p = sigmoid(object) and q = 1 - p: y = sqrt(p s), and 1 - y = (1 - y^2) / (1 + y) with
    1 - y^2 = q s + (1 - s), where 1 - s = s exp(-class), so nothing is subtracted. Two tables are all it needs: what
    leaves a CPU's cache costs more than what is computed.

    Args:
        class_logits: (C, m) for m candidates; overwritten.
        objectness_logits: (m,); overwritten.
        odds: (C, m) for the odds y / (1 - y).

    Returns:
        (m,) sum over classes of -log(1 - y).
    """
    objectness_logits.clamp_(-LOGIT_LIMIT, LOGIT_LIMIT)
    unlikely = objectness_logits.neg().sigmoid_()  # q
    likely = objectness_logits.sigmoid_()  # p
    inverse_odds = class_logits.clamp_(-LOGIT_LIMIT, LOGIT_LIMIT).neg_().exp_()  # (1 - s) / s
    share = torch.add(inverse_odds, 1.0, out=odds).reciprocal_()  # s
    inverse_rest = inverse_odds.add_(unlikely).mul_(share).reciprocal_()  # 1 / (1 - y^2)
    score = share.mul_(likely).sqrt_()  # y
    certainty = inverse_rest.addcmul_(inverse_rest, score)  # 1 / (1 - y)
    score.mul_(certainty)
    return certainty.log_().sum(0)


def published_class_cost(class_logits: Tensor, objectness_logits: Tensor, odds: Tensor) -> Tensor:
    """Class cost as the published implementation computes it, with its failure where scores saturate.

    It turns y into a logit and takes the cross-entropy of that: for y = 1 in the floating type (from logit 17 in
    float32) the box's own class costs NaN and every other infinity, and for y = 0 all cost NaN, so that the best
    candidates come last. Here infinity is a large number and NaN a larger one; at the box's own class, where the
    odds have no logarithm, the caller still meets NaN.

    Args:
        class_logits: (C, m) for m candidates.
        objectness_logits: (m,).
        odds: (C, m) for the odds y / (1 - y), NaN for y = 0 and y = 1.

    Returns:
        (m,) sum over classes of -log(1 - y).
    """
    score = (class_logits.sigmoid() * objectness_logits.sigmoid()).sqrt_()
    torch.div(score, 1.0 - score, out=odds)
    logit = odds.log()
    alone = F.binary_cross_entropy_with_logits(logit, torch.zeros_like(logit), reduction="none").sum(0)
    odds.masked_fill_((score == 1.0) | (score == 0.0), torch.nan)
    return alone.nan_to_num_(nan=PUBLISHED_NAN, posinf=PUBLISHED_INFINITY)
