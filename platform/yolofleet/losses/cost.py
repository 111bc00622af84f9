"""What a candidate costs a box of a class, apart from the overlap of the boxes.

The class cost of the dynamic matching is the binary cross-entropy between y_c = sqrt(sigmoid(class_c) sigmoid(object))
and the one-hot class of the box, summed over classes. Per (box, candidate) pair that would be C numbers. But it
splits: sum_c -log(1 - y_c) belongs to the candidate alone, and the box only adds log(1 - y) - log y at its own class.
So one table of candidates x classes answers every pair with one look-up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOGIT_LIMIT = 80.0  # exp(80) and its inverse are normal float32 numbers; beyond it a sigmoid is 0 or 1 to any purpose


def class_cost(class_logits: Tensor, objectness_logits: Tensor) -> Tensor:
    """Class cost of each candidate for a box of each class, exact where scores saturate.

    With e = exp(-class logit), p = sigmoid(object) and q = 1 - p: y = sqrt(p / (1 + e)), and
    1 - y = (1 - y^2) / (1 + y) with 1 - y^2 = (e + q) / (1 + e), which subtracts nothing.

    Args:
        class_logits: (G, C, n), within +-LOGIT_LIMIT; overwritten.
        objectness_logits: (G, n), within +-LOGIT_LIMIT.

    Returns:
        (G, C, n).
    """
    odds = class_logits.neg_().exp_()  # e
    likely = objectness_logits.sigmoid().sqrt_()[:, None]
    unlikely = objectness_logits.neg().sigmoid_()[:, None]  # q
    total = odds + 1.0
    score = total.rsqrt().mul_(likely)  # y
    inverse = total.addcmul_(total, score).div_(odds.add_(unlikely))  # 1 / (1 - y) = (1 + y)(1 + e) / (e + q)
    alone = torch.log(inverse, out=odds).sum(1, keepdim=True)  # sum_c -log(1 - y_c)
    return alone - inverse.mul_(score).log_()  # less log(y / (1 - y))


def published_class_cost(class_logits: Tensor, objectness_logits: Tensor) -> Tensor:
    """Class cost as the published implementation computes it, with its failure where scores saturate.

    It turns y into a logit and takes the cross-entropy of that: for y = 1 in the floating type (from logit 17 in
    float32) the box's own class costs NaN and every other infinity, and for y = 0 all cost NaN, so that the best
    candidates come last. NaN and infinity are returned as large numbers in that order.

    Args:
        class_logits: (G, C, n).
        objectness_logits: (G, n).

    Returns:
        (G, C, n).
    """
    score = (class_logits.sigmoid() * objectness_logits.sigmoid()[:, None]).sqrt_()
    logit = torch.log(score / (1.0 - score))
    alone = F.binary_cross_entropy_with_logits(logit, torch.zeros_like(logit), reduction="none").sum(1, keepdim=True)
    return torch.nan_to_num(alone - logit, nan=PUBLISHED_NAN, posinf=PUBLISHED_INFINITY)


PUBLISHED_INFINITY = 1e30
PUBLISHED_NAN = 2e30
