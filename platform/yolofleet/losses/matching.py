"""Dynamic-k matching (SimOTA): which candidates answer for which box, for the whole micro-batch at once.

Per image, every box may take any candidate of the image. Its k is the sum of its best overlaps (IoU), rounded down
and at least 1; it takes its k cheapest candidates by class cost - 3 log(IoU). A candidate taken by several boxes goes
to the box of the image to which it is cheapest.

The comparison is a table of boxes x candidates of each image. It is worked through in pieces of a bounded number of
entries, several images at a time or part of one, so memory grows with boxes + candidates and, on a CPU, the pieces
stay in the cache. Of the costs only the cheapest of each row and of each column are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolofleet.losses.arrangement import Arrangement
from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Places
from yolofleet.losses.comparison import Columns, Rows, box_table, candidate_geometry, columns_of, compare, rows_of
from yolofleet.losses.cost import PUBLISHED_NAN
from yolofleet.losses.hosting import is_countable
from yolofleet.losses.levels import Levels
from yolofleet.losses.selection import best_of_rows
from yolofleet.losses.workspace import Workspace

# Entries of a table of classes x candidates and of one of boxes x candidates. On a CPU, a few of them fit the cache.
HOST_ENTRIES = (1 << 19, 1 << 18)
DEVICE_ENTRIES = (1 << 26, 1 << 24)


@torch.no_grad()
def match(
    boxes: Boxes,
    places: Places,
    arrangement: Arrangement,
    logits: Tensor,
    levels: Levels,
    *,
    num_best: int,
    published_quirks: bool,
    workspace: Workspace,
) -> Tensor:
    """Match candidates and boxes.

    Args:
        boxes: N boxes.
        places: n candidates.
        arrangement: Their layout.
        logits: (n, 5 + C) raw predictions at the candidates.
        levels: The lead levels.
        num_best: How many of the best overlaps make up k.
        published_quirks: Reproduce the published implementation where it is wrong.
        workspace: Scratch memory.

    Returns:
        (n,) the box that each candidate answers for, N for none.
    """
    if len(boxes) == 0 or len(places) == 0:
        return torch.full_like(places.box, len(boxes))
    table = box_table(boxes, levels, published_quirks)
    geometry = candidate_geometry(places, levels)
    class_entries, pair_entries = HOST_ENTRIES if is_countable(logits) else DEVICE_ENTRIES
    owner = torch.full_like(arrangement.candidate, len(boxes))
    groups_at_once = max(1, class_entries // (max(arrangement.widths) * logits.shape[1]))
    for start in range(0, len(arrangement.heights), groups_at_once):
        groups = slice(start, start + groups_at_once)
        height, width = arrangement.heights[groups][-1], max(arrangement.widths[groups])
        if height == 0 or width == 0:
            continue
        candidate, empty = arrangement.candidate[groups, :width], arrangement.empty[groups, :width]
        image = places.image[candidate] if arrangement.is_shared else None
        columns = columns_of(logits, geometry, candidate, empty, image, published_quirks, workspace)
        choice = Choice(columns, arrangement.first[groups, :width], len(boxes), num_best, published_quirks, workspace)
        rows_at_once = max(1, pair_entries // candidate.numel())
        for row in range(0, height, rows_at_once):
            choice.add(rows_of(table, arrangement.box[groups, row : min(row + rows_at_once, height)]))
        owner[groups, :width] = choice.owner()
    return owner.flatten()[arrangement.position]


class Choice:
    """What the boxes of some groups take, and who owns a column in the end.

    Args:
        columns: n candidates of each of G groups.
        first: (G, n) the group's first column on the same cell.
        num_boxes: N, which stands for nobody.
        num_best: How many of the best overlaps make up k.
        published_quirks: Settle contested columns as published, where NaN goes before any number.
        workspace: Scratch memory.
    """

    def __init__(
        self,
        columns: Columns,
        first: Tensor,
        num_boxes: int,
        num_best: int,
        published_quirks: bool,
        workspace: Workspace,
    ) -> None:
        groups, width = first.shape
        self._columns, self._workspace = columns, workspace
        self._start = torch.arange(groups, device=first.device)[:, None] * width  # of each group's columns
        self._first = (first + self._start).flatten()
        self._num_boxes, self._num_best, self._published_quirks = num_boxes, min(num_best, width), published_quirks
        # A box is known by its weight, N less its index: the highest weight is the first box, 0 is nobody.
        self._cheapest = columns.alone.new_full((groups, width), torch.inf)
        self._cheapest_weight = torch.zeros_like(self._cheapest)
        self._taker_weight = self._cheapest_weight.new_zeros(groups * width)
        self._times_taken = torch.zeros_like(self._taker_weight)

    def add(self, rows: Rows) -> None:
        """Let some boxes take their columns."""
        overlap, cost = compare(rows, self._columns, self._workspace)  # (G, r, n)
        if self._published_quirks:
            cost.nan_to_num_(nan=PUBLISHED_NAN, posinf=torch.inf)
        self._take(rows, overlap, cost)
        if self._published_quirks:
            cost.masked_fill_(cost == PUBLISHED_NAN, -torch.inf)
        lowest = cost.amin(1)
        weight = torch.eq(cost, lowest[:, None], out=overlap).mul_(rows.weight).amax(1)  # of the first at the lowest
        self._cheapest_weight = torch.where(lowest < self._cheapest, weight, self._cheapest_weight)
        self._cheapest = torch.minimum(self._cheapest, lowest)

    def _take(self, rows: Rows, overlap: Tensor, cost: Tensor) -> None:
        width = cost.shape[2]
        best, _ = best_of_rows(overlap.view(-1, width), self._num_best, largest=True, ranked=False)
        wanted = best.sum(1).int().clamp_(1, self._num_best)  # k, (G r,)
        most = int(wanted.max()) if is_countable(wanted) else self._num_best
        price, column = best_of_rows(cost.view(-1, width), most, largest=False)  # (G r, most)
        takes = (torch.arange(most, device=cost.device) < wanted[:, None]) & price.isfinite()
        taken = (column.view(len(self._start), -1) + self._start).view_as(column)
        taken = _in_order(self._first[taken]).flatten()
        takes_number = takes.to(cost.dtype)
        self._times_taken.scatter_add_(0, taken, takes_number.flatten())
        weight = takes_number.mul_(rows.weight.view(-1, 1)).flatten()
        self._taker_weight.scatter_reduce_(0, taken, weight, "amax")

    def owner(self) -> Tensor:
        """(G, n) the only taker of each column; of a contested one, the box to which it is cheapest; N for nobody."""
        contested = (self._times_taken > 1).view_as(self._cheapest)
        weight = torch.where(contested, self._cheapest_weight, self._taker_weight.view_as(self._cheapest))
        return self._num_boxes - weight.long()


def _in_order(first: Tensor) -> Tensor:
    """Of the equal candidates on a cell, let every box take the first, then the second: (r, k) columns.

    Selection takes any of equal candidates. Whether two boxes contest a candidate must not depend on which.

    Args:
        first: (r, k) the first column on the cell of each column taken.
    """
    again = (first[:, :, None] == first[:, None, :]).tril(-1)  # (r, k, k) taken before on the same cell
    return first + again.sum(2)
