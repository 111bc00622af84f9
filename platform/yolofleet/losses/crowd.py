"""What the boxes of an image with many of them take, in host memory, without comparing all with all.

The pairs of an image grow with the square of its boxes, but a box takes at most `num_best` candidates, and its k looks
at no more overlaps. A box is compared with its most promising blocks of candidates first. That tells which overlaps
and costs are worth having, and of the other blocks only those are compared that promise as much. What is found is what
comparing all would find.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolofleet.losses.blocks import BLOCK_WIDTH, NUM_SHARES, Blocks
from yolofleet.losses.comparison import (
    OVERLAP_FLOOR,
    OVERLAP_WEIGHT,
    OWN_PLANE,
    Pairs,
    compare_,
    overlap_of,
)
from yolofleet.losses.predictions import FIRST_CLASS

Indices = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]

COST_MARGIN = 1e-3  # far above the rounding of a cost, far below what usually tells two costs apart
COST_ERROR = 2e-6  # above the rounding of large costs, as a share of them


class Takings(NamedTuple):
    """What boxes of an image want and could take; t things.

    Attributes:
        wanted: (boxes,) k.
        box: (t,) box, counted in the image.
        position: (t,) position of the candidate.
        price: (t,) its cost for the box; the k cheapest of each box are among them.
    """

    wanted: Indices
    box: Indices
    position: Indices
    price: Numbers


class Crowd:
    """An image with many boxes, N.

    Args:
        pairs: Boxes and candidates; a group is an image, and what is offered has finite geometry.
        group: The image.
    """

    def __init__(self, pairs: Pairs, group: int) -> None:
        arrangement, self._workspace = pairs.arrangement, pairs.workspace
        box = arrangement.box[group, : arrangement.heights[group]]
        self._boxes = pairs.wanted.geometry.index_select(1, box)  # (5, N)
        self._label = pairs.wanted.channel.index_select(0, box) - FIRST_CLASS  # (N,)
        self._start = int(arrangement.start[group])
        number = int((~arrangement.empty[group]).sum())
        here = slice(self._start, self._start + number)
        self._planes = pairs.offered.planes[:, here]  # (6, n)
        self._odds = pairs.offered.odds.index_select(0, pairs.offered.order[here])[:, FIRST_CLASS:]  # (n, C)

    def takings(self, num_best: int, entries: int) -> Takings:
        """What every box wants and could take.

        Args:
            num_best: How many of the best overlaps make up k.
            entries: Pairs to compare at once.
        """
        blocks = Blocks(self._boxes, self._label, self._planes, self._odds, self._workspace)
        num_boxes, at_once = len(self._label), max(1, entries // blocks.number)
        starts = range(0, num_boxes, at_once)
        parts = [_takings(blocks, start, min(start + at_once, num_boxes), num_best, entries) for start in starts]
        wanted, box, place, price = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Takings(wanted, box, self._start + blocks.candidate[place], price)

    def cheapest_box(self, position: Indices, taker: Indices, entries: int) -> Indices:
        """The box to which each candidate is cheapest, of equal ones the first.

        No box is cheaper than one that took the candidate unless it overlaps enough even with the best odds.

        Args:
            position: (c,) candidates that several boxes took.
            taker: (c,) one of these boxes, counted in the image, as is the result.
            entries: Pairs to compare at once.
        """
        candidate, cheapest = position - self._start, taker.copy()
        which = torch.from_numpy(candidate)
        planes = self._planes.index_select(1, which)  # (6, c)
        class_cost = planes[OWN_PLANE] - self._odds.index_select(0, which).amax(1).log()
        taken = self._cost(taker, candidate)
        allowed = taken + taken.abs() * COST_ERROR + COST_MARGIN - class_cost
        least = (((-1.0 / OVERLAP_WEIGHT) * allowed).exp() - OVERLAP_FLOOR).numpy()  # (c,) overlap
        at_once = max(1, entries // len(self._label))
        for start in range(0, len(candidate), at_once):
            part = slice(start, start + at_once)
            overlap = overlap_of(self._boxes[:, None], planes[:, part, None], self._workspace)  # (c, N)
            row, box = np.divmod(np.flatnonzero(overlap.numpy() >= least[part, None]), len(self._label))
            cost = self._cost(box, candidate[part][row]).numpy()
            lowest = np.full(len(overlap), np.inf, dtype=cost.dtype)
            np.minimum.at(lowest, row, cost)
            first = np.flatnonzero(cost == lowest[row])[::-1]  # of equal ones it comes last, and stays
            cheapest[start + row[first]] = box[first]
        return cheapest

    def _cost(self, box: Indices, candidate: Indices) -> Tensor:
        """Cost of pairs: (m,)."""
        which, column = torch.from_numpy(box), torch.from_numpy(candidate)
        cost = self._odds[column, self._label.index_select(0, which)]
        compare_(cost, self._boxes.index_select(1, which), self._planes.index_select(1, column), self._workspace)
        return cost


def _takings(blocks: Blocks, start: int, end: int, num_best: int, entries: int) -> Takings:
    """What the boxes from `start` to `end` want and could take; the position is a place in the blocks."""
    most, least = blocks.promise(slice(start, end))  # (r, blocks)
    num_rows = end - start
    shares = least.reshape(num_rows, NUM_SHARES, -1)
    block = shares.argmin(2) + np.arange(NUM_SHARES) * shares.shape[2]  # (r, shares)
    row = np.arange(num_rows).repeat(NUM_SHARES)
    overlap, cost = (table.reshape(num_rows, -1) for table in blocks.compare(start + row, block.ravel()))
    best = np.fmax(np.sort(overlap, axis=1)[:, -num_best:], 0.0)  # (r, num_best)
    limit = np.partition(cost, num_best - 1, axis=1)[:, num_best - 1]
    things = [_not_above(limit, row, block.ravel(), cost.reshape(-1, BLOCK_WIDTH))]
    overlaps = [(np.arange(num_rows).repeat(num_best), best.ravel())]

    promising = most > best[:, :1]
    above = limit + np.abs(limit) * COST_ERROR + COST_MARGIN
    promising |= ~(least > above[:, None])  # no number is a promise too
    np.put_along_axis(promising, block, False, axis=1)
    rows, others = np.divmod(np.flatnonzero(promising), blocks.number)
    at_once = max(1, entries // BLOCK_WIDTH)
    for done in range(0, len(rows), at_once):
        row, block = rows[done : done + at_once], others[done : done + at_once]
        overlap, cost = blocks.compare(start + row, block)
        things.append(_not_above(limit, row, block, cost))
        which, member = np.divmod(np.flatnonzero(overlap > best[row, :1]), BLOCK_WIDTH)
        overlaps.append((row[which], overlap[which, member]))

    row, place, price = (np.concatenate(column) for column in zip(*things, strict=True))
    largest, value = (np.concatenate(column) for column in zip(*overlaps, strict=True))
    wanted = _sums_of_largest(largest, value, num_best).astype(np.int64).clip(1, num_best)  # k
    return Takings(wanted, start + row, place, price)


def _not_above(limit: Numbers, row: Indices, block: Indices, cost: Numbers) -> tuple[Indices, Indices, Numbers]:
    """Row, place in the blocks and cost of what costs no more than the limit of its row.

    Args:
        limit: (r,) of each row.
        row: (m,) row for which a block was compared.
        block: (m,) which block.
        cost: (m, width).
    """
    which, member = np.divmod(np.flatnonzero(cost <= limit[row, None]), BLOCK_WIDTH)
    return row[which], block[which] * BLOCK_WIDTH + member, cost[which, member]


def _sums_of_largest(row: Indices, value: Numbers, number: int) -> Numbers:
    """For each row the sum of its `number` largest values; each has as many, and an overlap is at most 1."""
    order = np.argsort(2.0 * row + np.minimum(value, 1.0))
    ends = np.bincount(row).cumsum()
    sums: Numbers = value[order][ends[:, None] + np.arange(-number, 0)].sum(1)
    return sums
