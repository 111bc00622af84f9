"""Dynamic-k matching (SimOTA): which candidates answer for which box, for the whole micro-batch at once.

Per image, every box may take any candidate of the image. Its k is the sum of its best overlaps (IoU), rounded down
and at least 1; it takes its k cheapest candidates by class cost - 3 log(IoU). A candidate taken by several boxes goes
to the box of the image to which it is cheapest.

The comparison is a table of boxes x candidates of an image. It is worked through in pieces of a bounded number of
entries, so memory grows with boxes + candidates. Of the costs only the cheapest of each row and of each column stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolofleet.losses.arrangement import Arrangement, first_of_cell
from yolofleet.losses.boxes import Boxes, decode_centre, decode_size
from yolofleet.losses.candidates import Places
from yolofleet.losses.cost import LOGIT_LIMIT, PUBLISHED_NAN, class_cost, published_class_cost
from yolofleet.losses.hosting import is_countable
from yolofleet.losses.levels import Levels
from yolofleet.losses.selection import best_of_rows

OVERLAP_WEIGHT = 3.0  # the published factor of -log(IoU) beside the class cost
OVERLAP_FLOOR = 1e-8
HOST_PAIRS = 1 << 17  # half a megabyte of float32 for each temporary: they stay in a core's cache
DEVICE_PAIRS = 1 << 24


@dataclass(frozen=True)
class CandidateTable:
    """The candidates' side of the comparison, laid out by `Arrangement`: G groups x n columns.

    Attributes:
        corners: (G, 4, n) x1, y1, -x2, -y2 of the decoded boxes in pixels.
        area: (G, n) in square pixels.
        cost: (G, C, n) class cost for a box of each class; infinite where the column is not in use.
        image: (G, n) image index.
        first: (G n,) first column on the same cell.
    """

    corners: Tensor
    area: Tensor
    cost: Tensor
    image: Tensor
    first: Tensor


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
) -> Tensor:
    """Match candidates and boxes.

    Args:
        boxes: N boxes.
        places: n candidates.
        arrangement: Their layout.
        logits: (n, 5 + C) raw predictions at the candidates; overwritten.
        levels: The lead levels.
        num_best: How many of the best overlaps make up k.
        published_quirks: Reproduce the published implementation where it is wrong.

    Returns:
        (n,) the box that each candidate answers for, N for none.
    """
    if len(boxes) == 0 or len(places) == 0:
        return torch.full_like(places.box, len(boxes))
    table = _candidate_table(places, arrangement, logits, levels, published_quirks)
    pixels = levels.prior_grid[0] * levels.prior_strides[0]  # width and height of the image
    if published_quirks:
        pixels = pixels[1].expand(2)
    return _select(boxes, table, arrangement, pixels, num_best, published_quirks)[arrangement.slot]


def _candidate_table(
    places: Places, arrangement: Arrangement, logits: Tensor, levels: Levels, published_quirks: bool
) -> CandidateTable:
    num_groups, width = arrangement.num_groups, arrangement.width
    cell = torch.stack([places.column, places.row], 1)
    stride = levels.prior_strides[places.prior]
    centre = (decode_centre(logits[:, :2]) + cell) * stride
    half = decode_size(logits[:, 2:4], levels.prior_anchors[places.prior]) * stride / 2
    logits[:, :4] = torch.cat([centre - half, -centre - half], 1)

    planes = logits.new_zeros(num_groups * width, logits.shape[1]).index_copy_(0, arrangement.slot, logits)
    planes = planes.view(num_groups, width, -1).transpose(1, 2).contiguous()  # (G, 5 + C, n)
    unused = torch.ones(num_groups * width, dtype=torch.bool, device=logits.device)
    unused[arrangement.slot] = ~places.valid
    image = places.image.new_full((num_groups * width,), -1)
    image[arrangement.slot] = places.image

    corners = planes[:, :4]
    if published_quirks:
        cost = published_class_cost(planes[:, 5:], planes[:, 4])
    else:
        planes[:, 4:].clamp_(-LOGIT_LIMIT, LOGIT_LIMIT)
        cost = class_cost(planes[:, 5:], planes[:, 4])
    cost.masked_fill_(unused.view(num_groups, 1, width), torch.inf)
    sides = -corners[:, 2:] - corners[:, :2]
    first = first_of_cell(places, arrangement)
    return CandidateTable(corners, sides[:, 0] * sides[:, 1], cost, image.view(num_groups, width), first)


def _select(
    boxes: Boxes,
    table: CandidateTable,
    arrangement: Arrangement,
    pixels: Tensor,
    num_best: int,
    published_quirks: bool,
) -> Tensor:
    """Let every box take its k cheapest columns and settle columns that several took: (G n,) box or N."""
    num_boxes, (num_groups, num_classes, width) = len(boxes), table.cost.shape
    num_best = min(num_best, width)
    centre = boxes.xywh[:, :2] * pixels
    size = boxes.xywh[:, 2:] * pixels
    corners = torch.cat([centre - size / 2, -centre - size / 2], 1)[:, :, None]  # (N, 4, 1)
    area = size.prod(1, keepdim=True)
    group = torch.zeros_like(boxes.image) if arrangement.is_shared else boxes.image
    class_row = group * num_classes + boxes.label
    number = torch.arange(num_boxes, device=group.device)

    cheapest = table.area.new_full((num_groups, width), torch.inf)
    cheapest_box = group.new_full((num_groups, width), num_boxes)
    times_taken = group.new_zeros(num_groups * width)
    taker = group.new_full((num_groups * width,), num_boxes)
    step = max(1, (HOST_PAIRS if is_countable(group) else DEVICE_PAIRS) // width)
    for start in range(0, num_boxes, step):
        part = slice(start, start + step)
        overlap = _overlap(table, group[part], corners[part], area[part])  # (r, n)
        cost = table.cost.view(-1, width).index_select(0, class_row[part])
        if arrangement.is_shared:
            foreign = torch.where(boxes.alive[part], boxes.image[part], -2)[:, None] != table.image
            overlap.masked_fill_(foreign, 0.0)
            cost.masked_fill_(foreign, torch.inf)
        best, _ = best_of_rows(overlap, num_best, largest=True)
        wanted = best.sum(1).int().clamp_(1, num_best)  # k
        cost.sub_(overlap.add_(OVERLAP_FLOOR).log_(), alpha=OVERLAP_WEIGHT)
        if published_quirks:
            cost.nan_to_num_(nan=PUBLISHED_NAN, posinf=torch.inf)

        most = int(wanted.max()) if is_countable(wanted) else num_best
        price, column = best_of_rows(cost, most, largest=False)
        takes = (torch.arange(most, device=group.device) < wanted[:, None]) & price.isfinite()
        index = _in_order(table.first[group[part, None] * width + column]).flatten()
        times_taken.scatter_add_(0, index, takes.flatten().long())
        taker.scatter_reduce_(0, index, torch.where(takes, number[part, None], num_boxes).flatten(), "amin")

        if published_quirks:  # there, NaN is chosen before any number when a contested candidate is settled
            cost.masked_fill_(cost == PUBLISHED_NAN, -torch.inf)
        rows = group[part, None].expand_as(cost)
        lowest = torch.full_like(cheapest, torch.inf).scatter_reduce_(0, rows, cost, "amin")
        is_lowest = cost == lowest.index_select(0, group[part])
        first = torch.where(is_lowest, number[part, None], num_boxes)
        first = torch.full_like(cheapest_box, num_boxes).scatter_reduce_(0, rows, first, "amin")
        cheapest_box = torch.where(lowest < cheapest, first, cheapest_box)
        cheapest = torch.minimum(cheapest, lowest)
    return torch.where(times_taken > 1, cheapest_box.flatten(), taker)


def _in_order(first: Tensor) -> Tensor:
    """Of the equal candidates on a cell, let every box take the first, then the second: (r, k) columns.

    Selection takes any of equal candidates. Whether two boxes contest a candidate must not depend on which.

    Args:
        first: (r, k) the first column on the cell of each column taken.
    """
    again = (first[:, :, None] == first[:, None, :]).tril(-1)  # (r, k, k) taken before on the same cell
    return first + again.sum(2)


def _overlap(table: CandidateTable, group: Tensor, corners: Tensor, area: Tensor) -> Tensor:
    """IoU of boxes and their group's candidates: (r, n)."""
    inner = torch.maximum(table.corners.index_select(0, group), corners)  # (r, 4, n) x1, y1, -x2, -y2
    sides = (inner[:, :2] + inner[:, 2:]).clamp_(max=0.0)  # width and height, negated: their product is not
    intersection = sides[:, 0] * sides[:, 1]
    union = table.area.index_select(0, group).add_(area).sub_(intersection)
    return intersection.div_(union)
