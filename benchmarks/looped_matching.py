"""The dynamic-k matching image by image and box by box: the peer that `matching.py` measures against.

It is built as profiles of the published implementation describe that one, so that both sides run on the same machine
in the same minute: a loop over images, in it one over levels with boolean masks and gathers, three tables of boxes x
candidates x classes for the class cost, a `topk` and a look at k for every box, masks to sort what is left into
levels, and autograd recording it all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_BEST = 10
OVERLAP_WEIGHT = 3.0


def looped_matching(
    predictions: Sequence[Tensor],
    targets: Tensor,
    candidates: Sequence[Tensor],
    anchors: Sequence[Tensor],
    strides: Sequence[int],
    image_size: int,
) -> list[Tensor]:
    """Match candidates and boxes of square images.

    Args:
        predictions: One (B, A, H, W, 5 + C) a level.
        targets: (N, 6) image index, class, cx, cy, w, h as shares.
        candidates: One (n, 4) image, anchor, row, column a level; finding them is a hundredth of the published time.
        anchors: (A, 2) of each level in pixels.
        strides: Pixels a cell of each level.
        image_size: Pixels of a side.

    Returns:
        The candidates that answer for a box, for each level: (k, 5) image, anchor, row, column, the box's row in the
        targets.
    """
    matched: list[list[Tensor]] = [[] for _ in predictions]
    for image in range(predictions[0].shape[0]):
        mine = targets[targets[:, 0] == image]
        numbers = (targets[:, 0] == image).nonzero()[:, 0]
        rows, boxes, places, levels = [], [], [], []
        for level, (prediction, cells) in enumerate(zip(predictions, candidates, strict=True)):
            here = cells[:, 0] == image
            index, anchor, row, column = (cells[:, field][here] for field in range(4))
            size = anchors[level][cells[:, 1]][here]
            raw = prediction[index, anchor, row, column]  # (n, 5 + C)
            centre = (raw[:, :2].sigmoid() * 2.0 - 0.5 + torch.stack([column, row], 1)) * strides[level]
            boxes.append(_corners(centre, (raw[:, 2:4].sigmoid() * 2.0) ** 2 * size))
            rows.append(raw)
            places.append(torch.stack([index, anchor, row, column], 1))
            levels.append(torch.full((len(raw),), level, device=raw.device))
        if len(mine) == 0 or sum(map(len, rows)) == 0:
            continue
        wanted = _corners(mine[:, 2:4] * image_size, mine[:, 4:6] * image_size)
        takes = _takes(wanted, mine[:, 1].long(), torch.cat(rows), torch.cat(boxes))
        taken = takes.sum(0) > 0
        box = numbers[takes[:, taken].argmax(0)]
        level_of, place = torch.cat(levels)[taken], torch.cat([torch.cat(places)[taken], box[:, None]], 1)
        for level, parts in enumerate(matched):
            from_level = level_of == level
            parts.append(torch.stack([place[:, field][from_level] for field in range(5)], 1))
    nothing = torch.empty(0, 5, dtype=torch.long, device=targets.device)
    return [torch.cat(parts) if parts else nothing for parts in matched]


def _corners(centre: Tensor, size: Tensor) -> Tensor:
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def _takes(wanted: Tensor, label: Tensor, raw: Tensor, boxes: Tensor) -> Tensor:
    """Which candidates of an image answer for which box: (boxes, n), 0 or 1."""
    num_boxes, number, num_classes = len(wanted), len(raw), raw.shape[1] - 5
    overlap = _overlaps(wanted, boxes)  # (boxes, n)
    distance = -torch.log(overlap + 1e-8)
    best = torch.topk(overlap, min(NUM_BEST, number), dim=1).values
    k = torch.clamp(best.sum(1).int(), min=1)

    one_hot = F.one_hot(label, num_classes).float()[:, None].repeat(1, number, 1)  # (boxes, n, C)
    classes = raw[:, 5:].float()[None].repeat(num_boxes, 1, 1)
    score = classes.sigmoid() * raw[:, 4:5].float()[None].repeat(num_boxes, 1, 1).sigmoid()
    root = score.sqrt()
    class_cost = F.binary_cross_entropy_with_logits(torch.log(root / (1 - root)), one_hot, reduction="none").sum(-1)
    cost = class_cost + OVERLAP_WEIGHT * distance

    takes = torch.zeros_like(cost)
    for box in range(num_boxes):
        _, cheapest = torch.topk(cost[box], k=k[box].item(), largest=False)
        takes[box][cheapest] = 1.0
    times = takes.sum(0)
    if (times > 1).sum() > 0:
        first = torch.min(cost[:, times > 1], dim=0).indices
        takes[:, times > 1] *= 0.0
        takes[first, times > 1] = 1.0
    return takes


def _overlaps(first: Tensor, second: Tensor) -> Tensor:
    """IoU of every pair: (n, m)."""
    areas = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (first, second))
    low = torch.max(first[:, None, :2], second[:, :2])
    high = torch.min(first[:, None, 2:], second[:, 2:])
    common = (high - low).clamp(0).prod(2)
    area, other = areas
    return common / (area[:, None] + other - common)
