"""Dynamic-k matching (SimOTA; paper, section 4.2) in its plain form: the reference.

Of the candidates of an image, every box selects as many as fit it well, the cheapest ones. `match_image` is the whole
idea on one screen. `batched_matching` does the same for a micro-batch at once in bounded memory, and is tested to be
equal to it.

The class cost is the binary cross-entropy between y_c = sqrt(sigmoid(class_c) sigmoid(object)) and the one-hot class of
the box, summed over classes: sum_c -log(1 - y_c), less log(y / (1 - y)) at the box's own class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from yolofleet.losses.boxes import Boxes, decode_centre, decode_size
from yolofleet.losses.candidates import Candidates
from yolofleet.losses.levels import FIRST_CLASS, OBJECTNESS, Levels

IOU_WEIGHT = 3.0  # the published factor of -log(IoU) beside the class cost
IOU_FLOOR = 1e-8
LOGIT_LIMIT = 80.0  # exp(80) and its inverse are normal float32 numbers; a sigmoid beyond it is 0 or 1
NO_BOX_IMAGE, NO_CANDIDATE_IMAGE = -1, -2  # image indices that equal no other


@dataclass(frozen=True)
class MatchingInput:
    """N boxes and n candidates, ready to be compared; a box and a candidate of one image may be matched."""

    box_corners: Tensor
    """(4, N) left, top, right, bottom in pixels."""
    box_label: Tensor
    """(N,) class index."""
    box_image: Tensor
    """(N,) image index; -1 for boxes that take no part."""
    candidate_corners: Tensor
    """(4, n) of the predicted boxes."""
    candidate_image: Tensor
    """(n,) image index; -2 for slots that are not in use or whose prediction is NaN."""
    class_cost: Tensor
    """(n, C) what a candidate costs a box of each class, apart from the overlap."""


def match_image(iou: Tensor, cost: Tensor, num_best: int) -> Tensor:
    """Match the boxes and the candidates of one image.

    Args:
        iou: (N, n) overlap of every box with every candidate's prediction.
        cost: (N, n) class cost - 3 log(IoU).
        num_best: How many of the best overlaps make up k.

    Returns:
        (n,) the box that each candidate answers for, N for none.
    """
    # 1. Dynamic k: a box that many candidates predict well takes many, and every box at least one.
    k = iou.topk(min(num_best, iou.shape[1])).values.sum(1, keepdim=True).nan_to_num().long().clamp(min=1)
    # 2. Each box selects its k cheapest candidates, of equal ones the first.
    rank = cost.argsort(dim=1, stable=True).argsort(dim=1)
    selected = rank < k
    # 3. A candidate that several boxes selected goes to the box of the image that it is cheapest for.
    times_selected = selected.sum(0)
    box = torch.where(times_selected > 1, cost.argmin(0), selected.long().argmax(0))
    return torch.where(times_selected > 0, box, len(cost))


def match_by_image(pairs: MatchingInput, num_images: int, num_best: int) -> Tensor:
    """Match a micro-batch image by image: (n,) the box that each candidate answers for, N for none."""
    matched = torch.full_like(pairs.candidate_image, len(pairs.box_image))
    for image in range(num_images):
        box = (pairs.box_image == image).nonzero().squeeze(1)
        candidate = (pairs.candidate_image == image).nonzero().squeeze(1)
        if len(box) and len(candidate):
            iou = compute_iou(pairs.box_corners[:, box, None], pairs.candidate_corners[:, None, candidate])
            cost = pairs.class_cost[candidate].t()[pairs.box_label[box]] + compute_iou_cost(iou)
            found = match_image(iou, cost, num_best)
            matched[candidate] = torch.cat([box, box.new_tensor([len(pairs.box_image)])])[found]
    return matched


def compute_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes given as left, top, right, bottom in the first dimension; the others are broadcast."""
    width = torch.minimum(first[2], second[2]).sub_(torch.maximum(first[0], second[0])).clamp_(min=0.0)
    height = torch.minimum(first[3], second[3]).sub_(torch.maximum(first[1], second[1])).clamp_(min=0.0)
    common = width.mul_(height)
    area, other_area = ((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return common / torch.add(area, other_area, out=height).sub_(common)


def compute_iou_cost(iou: Tensor) -> Tensor:
    """-3 log(IoU), finite where boxes do not overlap."""
    return (iou + IOU_FLOOR).log_().mul_(-IOU_WEIGHT)


def compute_class_cost(rows: Tensor) -> Tensor:
    """What each candidate costs a box of each class: (n, C), exact where scores saturate.

    With p = sigmoid(object) and u = exp(-class), y^2 = p / (1 + u). Since 1 - y^2 = (u + 1 - p) / (1 + u), nothing
    need be subtracted: the odds y / (1 - y) are a (sqrt(1 + u) + a) / (u + 1 - p) with a = sqrt(p), and 1 / (1 - y)
    is one more.

    Args:
        rows: (n, 5 + C) raw predictions.
    """
    objectness = rows[:, OBJECTNESS, None].clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    root, unlikely = objectness.sigmoid().sqrt_(), torch.sigmoid(-objectness)  # a, 1 - p
    inverse = rows[:, FIRST_CLASS:].clamp(-LOGIT_LIMIT, LOGIT_LIMIT).neg_().exp_()  # u
    odds = (inverse + 1.0).sqrt_().add_(root).mul_(root).div_(inverse.add_(unlikely))
    return odds.log1p().sum(1, keepdim=True) - odds.log_()


def compute_published_class_cost(rows: Tensor) -> Tensor:
    """The class cost as the published implementation computes it, with its failure where scores saturate: (n, C).

    It turns y into a logit and takes the cross-entropy of that. For y = 1 in the floating type (from logit 17 in
    float32) the box's own class costs NaN and every other infinity, and for y = 0 all classes cost NaN: the best
    candidates come last. A candidate that costs a box NaN goes to that box when several selected it.
    """
    score = (rows[:, FIRST_CLASS:].sigmoid() * rows[:, OBJECTNESS, None].sigmoid()).sqrt_()
    logit = torch.log(score / (1.0 - score))
    absent = F.binary_cross_entropy_with_logits(logit, torch.zeros_like(logit), reduction="none")
    present = F.binary_cross_entropy_with_logits(logit, torch.ones_like(logit), reduction="none")
    return absent.sum(1, keepdim=True) - absent + present


def prepare_matching(
    boxes: Boxes, candidates: Candidates, rows: Tensor, levels: Levels, published_quirks: bool
) -> MatchingInput:
    """Decode the candidates' predictions and compute their class costs.

    Args:
        boxes: N boxes.
        candidates: n candidates.
        rows: (n, 5 + C) raw predictions at the candidates.
        levels: The lead levels.
        published_quirks: Scale boxes and compute class costs as the published implementation does.
    """
    prior, stride = candidates.prior, levels.prior_strides[candidates.prior]
    share = rows[:, :OBJECTNESS].sigmoid()
    cell = torch.stack([candidates.column, candidates.row], 1)
    centre = (decode_centre(share[:, :2]) + cell) * stride  # (n, 2) pixels
    size = decode_size(share[:, 2:], levels.prior_anchors[prior]) * stride
    pixels = levels.prior_grid[0] * levels.prior_strides[0]  # width and height of the image
    if published_quirks:
        pixels = pixels[1].expand(2)  # it takes the image's height for its width
    box_centre, box_size = boxes.xywh[:, :2] * pixels, boxes.xywh[:, 2:] * pixels
    class_cost = (compute_published_class_cost if published_quirks else compute_class_cost)(rows)
    in_use = candidates.valid if published_quirks else candidates.valid & ~rows.sum(1).isnan()
    return MatchingInput(
        box_corners=torch.cat([box_centre - box_size / 2, box_centre + box_size / 2], 1).t().contiguous(),
        box_label=boxes.label,
        box_image=torch.where(boxes.alive, boxes.image, NO_BOX_IMAGE),
        candidate_corners=torch.cat([centre - size / 2, centre + size / 2], 1).t().contiguous(),
        candidate_image=torch.where(in_use, candidates.image, NO_CANDIDATE_IMAGE),
        class_cost=class_cost,
    )
