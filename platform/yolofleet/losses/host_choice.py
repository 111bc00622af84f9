"""Who takes which candidate, in host memory: lists of what was taken.

Images with many boxes are compared by blocks, the others all with all, several images at a time. Rows are sorted by
numpy, whose sort of numbers is vectorised and takes a small part of the time of `torch.topk`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolofleet.losses.arrangement import BLOCK
from yolofleet.losses.comparison import Pairs
from yolofleet.losses.crowd import Crowd

CROWD = 200  # boxes on an image from which on comparing by blocks takes less time than comparing all with all

Indices = npt.NDArray[np.int64]


def choose_on_host(pairs: Pairs, num_best: int, entries: int) -> Tensor:
    """Let every box take its cheapest candidates, and settle who keeps those that several boxes took.

    Args:
        pairs: Boxes and candidates; a group is an image.
        num_best: How many of the best overlaps make up k.
        entries: Pairs to compare at once.

    Returns:
        (n,) the box that keeps the candidate at each position, N for nobody.
    """
    boxes, starts = pairs.arrangement.box.numpy(), pairs.arrangement.start.numpy()
    num_boxes, num_candidates = pairs.wanted.image.shape[0] - 1, len(pairs.arrangement.order)
    wanted = np.zeros(num_boxes + 1, dtype=np.int64)  # k
    takers, positions, prices = [], [], []
    first_crowd = _first_crowd(pairs)
    for piece in pairs.pieces(entries, first_crowd):
        width = piece.cost.shape[2]
        overlap, cost = piece.overlap.view(-1, width).numpy(), piece.cost.view(-1, width)
        overlap.sort(axis=1)
        best = overlap[:, -num_best:].sum(1)  # k, where a number
        k = np.fmin(np.fmax(best, 1.0), min(num_best, width)).astype(np.int64)
        row, column, price = _cheapest_blocks(cost, k)
        box, start = boxes[piece.groups, piece.rows].ravel(), starts[piece.groups].repeat(piece.cost.shape[1])
        wanted[box] = k
        takers.append(box[row])
        positions.append(start[row] + column)
        prices.append(price)
    crowds = {}
    for group in range(first_crowd, len(starts)):
        if pairs.arrangement.widths[group] > 0:
            crowds[group] = Crowd(pairs, group)
            found = crowds[group].takings(num_best, entries)
            wanted[boxes[group, : len(found.wanted)]] = found.wanted
            takers.append(boxes[group, found.box])
            positions.append(found.position)
            prices.append(found.price)
    taker, position = _cheapest(
        np.concatenate(takers), np.concatenate(positions), np.concatenate(prices), wanted, num_candidates
    )

    owner = np.full(num_candidates, num_boxes)
    owner[position] = taker
    contested = np.flatnonzero(np.bincount(position, minlength=num_candidates) > 1)
    few, *many = np.split(contested, np.searchsorted(contested, starts[first_crowd:]))
    at_once = max(1, entries // max([1, *pairs.arrangement.heights[:first_crowd]]))
    for done in range(0, len(few), at_once):
        part = few[done : done + at_once]
        owner[part] = pairs.cheapest_box(torch.from_numpy(part)).numpy()
    for group, part in enumerate(many, first_crowd):
        if len(part) > 0:
            first = boxes[group, 0]
            owner[part] = first + crowds[group].cheapest_box(part, owner[part] - first, entries)
    return torch.from_numpy(owner)


def _first_crowd(pairs: Pairs) -> int:
    """The first group with so many boxes that comparing all with all takes longer; the following have more."""
    heights = pairs.arrangement.heights
    first = bisect_left(heights, CROWD)
    if first < len(heights) and not torch.isfinite(pairs.offered.planes).all():
        return len(heights)  # what is no number cannot be bounded
    return len(heights) if pairs.published_quirks else first


def _cheapest_blocks(cost: Tensor, k: Indices) -> tuple[Indices, Indices, npt.NDArray[Any]]:
    """Row, column and cost of the k cheapest entries of each row, and of a few more.

    The k cheapest entries lie in the k blocks with the cheapest entries: at most k - 1 entries are cheaper than one
    of them, so at most k - 1 blocks have a cheaper cheapest. Taking that of each block is one vectorised pass.

    Args:
        cost: (r, width).
        k: (r,) how many are wanted.
    """
    rows, width = cost.shape
    num_blocks = width // BLOCK  # a block is every (width / 8)th entry
    cheapest = cost.view(rows, BLOCK, num_blocks).amin(1).numpy()
    limit = np.sort(cheapest, axis=1)[np.arange(rows), np.minimum(k, num_blocks) - 1]
    limit[k > num_blocks] = np.inf
    row, block = np.divmod(np.flatnonzero(cheapest <= limit[:, None]), num_blocks)
    price = cost.view(rows, BLOCK, num_blocks).numpy()[row, :, block]  # (blocks, 8)
    which, member = np.divmod(np.flatnonzero(price <= limit[row, None]), BLOCK)
    return row[which], member * num_blocks + block[which], price[which, member]


def _cheapest(
    taker: Indices, position: Indices, price: npt.NDArray[Any], wanted: Indices, num_candidates: int
) -> tuple[Indices, Indices]:
    """Of what boxes could take, the k cheapest of each box, of equal ones the first; infinite costs are not taken.

    Args:
        taker: (t,) box.
        position: (t,) candidate.
        price: (t,) its cost for the box.
        wanted: (N + 1,) k of each box.
        num_candidates: Candidates altogether.

    Returns:
        Box and candidate of each thing taken.
    """
    finite = np.isfinite(price)
    taker, position, price = taker[finite], position[finite], price[finite]
    if len(taker) == 0:
        return taker, position
    order = price.argsort()
    ascending = price[order]
    rank = np.zeros_like(order)  # equal prices have equal ranks
    rank[order[1:]] = np.cumsum(ascending[1:] > ascending[:-1])
    number = taker * len(rank) + rank  # ordered by box and price
    counts = np.bincount(taker, minlength=len(wanted))
    last = counts.cumsum() - counts + np.minimum(wanted, counts) - 1  # of the k cheapest, in sorted order
    limit = np.sort(number)[last][taker]
    below, tied = number < limit, number == limit

    free = np.minimum(wanted, counts) - np.bincount(taker[below], minlength=len(wanted))
    tied_taker, tied_position = np.divmod(np.sort(taker[tied] * num_candidates + position[tied]), num_candidates)
    counts = np.bincount(tied_taker, minlength=len(wanted))
    kept = np.arange(len(tied_taker)) - (counts.cumsum() - counts)[tied_taker] < free[tied_taker]
    return (
        np.concatenate([taker[below], tied_taker[kept]]),
        np.concatenate([position[below], tied_position[kept]]),
    )
