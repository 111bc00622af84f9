"""Who takes which candidate, on a device: masks of fixed shape, so that the host never waits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from yolofleet.losses.comparison import Pairs
from yolofleet.losses.cost import PUBLISHED_NAN


def choose_on_device(pairs: Pairs, num_best: int, entries: int) -> Tensor:
    """Let every box take its cheapest candidates, and settle who keeps those that several boxes took.

    Args:
        pairs: Boxes and candidates.
        num_best: How many of the best overlaps make up k.
        entries: Pairs to compare at once.

    Returns:
        (n,) the box that keeps the candidate at each position, N for nobody.
    """
    arrangement, num_boxes = pairs.arrangement, pairs.wanted.image.shape[0] - 1
    # A box is known by its weight, N less its index: the highest weight is the first box, 0 is nobody.
    weights = (num_boxes - arrangement.box).to(pairs.offered.planes.dtype)[..., None]  # (G, highest, 1)
    cheapest = torch.full_like(arrangement.empty, torch.inf, dtype=weights.dtype)  # (G, widest) of all boxes
    cheapest_weight, taker_weight = torch.zeros_like(cheapest), torch.zeros_like(cheapest)
    times_taken = torch.zeros_like(cheapest)
    for piece in pairs.pieces(entries, len(arrangement.heights)):
        overlap, cost, weight = piece.overlap, piece.cost, weights[piece.groups, piece.rows]
        width = cost.shape[2]
        columns = (piece.groups, slice(0, width))
        takes = _takes(overlap, cost, min(num_best, width)).to(cost.dtype)
        times_taken[columns] += takes.sum(1)
        taker_weight[columns] = torch.maximum(taker_weight[columns], takes.mul_(weight).amax(1))
        if pairs.published_quirks:
            cost.masked_fill_(cost == PUBLISHED_NAN, -torch.inf)
        lowest = cost.amin(1)
        first = torch.eq(cost, lowest[:, None], out=overlap).mul_(weight).amax(1)  # of the boxes at the lowest
        cheapest_weight[columns] = torch.where(lowest < cheapest[columns], first, cheapest_weight[columns])
        cheapest[columns] = torch.minimum(cheapest[columns], lowest)

    kept = num_boxes - torch.where(times_taken > 1, cheapest_weight, taker_weight).long()  # (G, widest)
    position = arrangement.start[:, None] + torch.arange(kept.shape[1], device=kept.device)
    number = len(arrangement.order)
    position = torch.where(arrangement.empty, number, position)
    owner = pad(torch.full_like(arrangement.order, num_boxes), (0, 1))  # the last entry takes empty columns
    return owner.scatter_(0, position.flatten(), kept.flatten())[:number]


def _takes(overlap: Tensor, cost: Tensor, num_best: int) -> Tensor:
    """Which candidates each box takes, of equal ones the first: (G, r, n) bool."""
    best = overlap.topk(num_best, sorted=False).values.sum(2, keepdim=True)
    wanted = best.nan_to_num().long().clamp_(1, num_best)  # k, (G, r, 1)
    limit = cost.topk(num_best, largest=False).values.gather(2, wanted - 1)
    limit.clamp_(max=torch.finfo(cost.dtype).max)  # nobody takes infinite costs
    below, tied = cost < limit, cost == limit
    free = wanted - below.sum(2, keepdim=True)
    return below | (tied & (tied.cumsum(2, dtype=torch.int32) <= free))
