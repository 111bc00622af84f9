"""Compare boxes with candidates: overlap and cost of every pair, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from yolofleet.losses.arrangement import Arrangement
from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Places
from yolofleet.losses.cost import PUBLISHED_NAN, class_cost_, published_class_cost_
from yolofleet.losses.levels import Levels
from yolofleet.losses.predictions import FIRST_CLASS, OBJECTNESS
from yolofleet.losses.workspace import Workspace

OVERLAP_WEIGHT = 3.0  # the published factor of -log(IoU) beside the class cost
OVERLAP_FLOOR = 1e-8

OWN_PLANE = 1  # of the planes of `Offered`
NUM_PLANES = 6
NOBODY = 0  # the channel of nobody's class in the odds


@dataclass(frozen=True)
class Wanted:
    """The boxes, and nobody after the last one: N + 1.

    Attributes:
        geometry: (5, N + 1) area, x1, y1, -x2, -y2 in pixels.
        channel: (N + 1,) where the odds of the box's class stand in a row of `Offered`.
        image: (N + 1,) image index, -1 for nobody.
    """

    geometry: Tensor
    channel: Tensor
    image: Tensor


@dataclass(frozen=True)
class Offered:
    """The candidates: n.

    Attributes:
        planes: (6, n) area, own part of the class cost, x1, y1, -x2, -y2 of the decoded box in pixels, in the order
            of the candidates' positions.
        odds: (n, 5 + C) odds of each class, and 0 as those of nobody's class, in the order of the places.
        order: (n,) the place at each position.
        image: (n,) image index at each position.
    """

    planes: Tensor
    odds: Tensor
    order: Tensor
    image: Tensor


def wanted_boxes(boxes: Boxes, levels: Levels, published_quirks: bool) -> Wanted:
    """Geometry and class of the boxes; the published implementation takes the image's height for its width."""
    pixels = levels.prior_grid[0] * levels.prior_strides[0]  # (2,) width and height of the image
    if published_quirks:
        pixels = pixels[1].expand(2)
    box = (boxes.xywh * torch.cat([pixels, pixels])).t()
    centre, size = box[:2], box[2:]  # (2, N)
    geometry = centre.new_zeros(5, len(boxes) + 1)
    torch.mul(size[0], size[1], out=geometry[0, :-1])
    torch.sub(centre, size, alpha=0.5, out=geometry[1:3, :-1])
    torch.add(centre, size, alpha=0.5, out=geometry[3:, :-1]).neg_()
    geometry[0, -1] = 1.0  # an area, so that nothing is divided by 0
    channel = torch.where(boxes.alive, boxes.label + FIRST_CLASS, NOBODY)
    return Wanted(geometry, pad(channel, (0, 1), value=NOBODY), pad(boxes.image, (0, 1), value=-1))


def offered_candidates(
    logits: Tensor,
    places: Places,
    arrangement: Arrangement,
    levels: Levels,
    *,
    class_entries: int,
    published_quirks: bool,
    workspace: Workspace,
) -> Offered:
    """Decode the candidates and price their classes, a bounded number of candidates at a time.

    Args:
        logits: (n, 5 + C) raw predictions of the candidates, replaced by the odds.
        places: n candidates.
        arrangement: Their layout.
        levels: The lead levels.
        class_entries: Entries of a table of candidates x classes.
        published_quirks: Price classes as published.
        workspace: Scratch memory.
    """
    order, (number, channels) = arrangement.order, logits.shape
    share = logits[:, :OBJECTNESS].index_select(0, order).t().sigmoid()  # (4, n)
    price = published_class_cost_ if published_quirks else class_cost_
    at_once = min(max(1, class_entries // channels), number)
    scratch = workspace.take("classes", (at_once, channels), logits)
    own = torch.cat([price(rows, scratch[: len(rows)]) for rows in torch.split(logits, at_once)])
    logits[:, NOBODY] = 0.0

    prior = torch.cat([levels.prior_strides, levels.prior_anchors * levels.prior_strides * 2.0], 1).t()  # (3, L A)
    prior = prior.index_select(1, places.prior.index_select(0, order))  # stride and four times half the anchor
    corner = torch.stack([places.column, places.row]).index_select(1, order)  # (2, n) cells
    centre = share[:2].mul(2.0).sub_(0.5).add_(corner).mul_(prior[0])  # (2, n) pixels
    half = share[2:].square().mul_(prior[1:])
    planes = logits.new_empty(NUM_PLANES, number)
    torch.mul(half[0], half[1], out=planes[0]).mul_(4.0)
    torch.index_select(own, 0, order, out=planes[OWN_PLANE])
    torch.sub(centre, half, out=planes[2:4])
    torch.add(centre, half, out=planes[4:6]).neg_()
    return Offered(planes, logits, order, places.image.index_select(0, order))


@dataclass(frozen=True)
class Piece:
    """Some boxes of some groups compared with all candidates of these groups.

    Attributes:
        groups: Which groups; G below.
        rows: Which of their rows; r below.
        overlap: (G, r, width) IoU of every pair, in the workspace until the next piece.
        cost: (G, r, width) cost of every pair; infinite for empty rows and columns and across images.
    """

    groups: slice
    rows: slice
    overlap: Tensor
    cost: Tensor


class Pairs:
    """All pairs of boxes and candidates of the same group.

    Args:
        wanted: The boxes.
        offered: The candidates.
        arrangement: Their layout.
        published_quirks: Costs that are no number stand for the published NaN.
        workspace: Scratch memory.
    """

    def __init__(
        self, wanted: Wanted, offered: Offered, arrangement: Arrangement, published_quirks: bool, workspace: Workspace
    ) -> None:
        self.wanted, self.offered, self.arrangement = wanted, offered, arrangement
        self.published_quirks, self.workspace = published_quirks, workspace
        (groups, highest), widest = arrangement.box.shape, arrangement.empty.shape[1]
        box, channels = arrangement.box.flatten(), offered.odds.shape[1]
        self._geometry = wanted.geometry.index_select(1, box).view(5, groups, highest, 1)
        position = torch.arange(widest, device=box.device) + arrangement.start[:, None]
        position = position.masked_fill_(arrangement.empty, 0).flatten()
        # The odds of a pair stand at first[column] + channel[row]; an index of half the size is read in less time.
        number_type = torch.int32 if offered.odds.numel() < 1 << 31 else torch.int64
        first = offered.order.index_select(0, position) * channels
        self._first = first.to(number_type).view(groups, 1, widest)
        self._channel = wanted.channel.index_select(0, box).to(number_type).view(groups, highest, 1)
        found = offered.planes.index_select(1, position).view(NUM_PLANES, groups, 1, widest)
        self._found = found.masked_fill_(arrangement.empty[:, None], 0.0)
        self._found[OWN_PLANE].masked_fill_(arrangement.empty[:, None], torch.inf)

    def pieces(self, entries: int, num_groups: int) -> Iterator[Piece]:
        """Compare all pairs of the first groups, about `entries` at a time."""
        heights, widths = self.arrangement.heights[:num_groups], self.arrangement.widths
        first = 0
        while first < len(heights):
            width, last = widths[first], first + 1
            while last < len(heights):
                wider = max(width, widths[last])
                if (last + 1 - first) * heights[last] * wider > entries:
                    break
                width, last = wider, last + 1
            height, groups = heights[last - 1], slice(first, last)
            rows_at_once = max(1, entries // max((last - first) * width, 1))
            for row in range(0, height if width > 0 else 0, rows_at_once):
                yield self._piece(groups, slice(row, min(row + rows_at_once, height)), width)
            first = last

    def _piece(self, groups: slice, rows: slice, width: int) -> Piece:
        channel, first = self._channel[groups, rows], self._first[groups, :, :width]
        shape = (*channel.shape[:2], width)
        index = torch.add(channel, first, out=self.workspace.take("index", shape, first))
        cost = self.workspace.take("cost", shape, self.offered.planes)
        torch.index_select(self.offered.odds.view(-1), 0, index.view(-1), out=cost.view(-1))
        overlap = compare_(cost, self._geometry[:, groups, rows], self._found[:, groups, :, :width], self.workspace)
        if self.published_quirks:
            cost.nan_to_num_(nan=PUBLISHED_NAN, posinf=torch.inf)
            cost.masked_fill_(self.arrangement.empty[groups, None, :width], torch.inf)
        if self.arrangement.is_shared:
            image = pad(self.offered.image, (0, width - len(self.offered.order)))
            foreign = image != self.wanted.image[self.arrangement.box[groups, rows], None]
            overlap.masked_fill_(foreign, 0.0)
            cost.masked_fill_(foreign, torch.inf)
        return Piece(groups, rows, overlap, cost)

    def cheapest_box(self, position: Tensor) -> Tensor:
        """The box of the image to which a candidate is cheapest, for candidates (c,) of groups that are images.

        The published implementation gives a candidate to a box to which its cost is NaN before any other.
        """
        group = torch.searchsorted(self.arrangement.start, position, right=True) - 1
        height = self.arrangement.heights[int(group.max())]
        box = self.arrangement.box[:, :height].index_select(0, group)  # (c, height)
        place = self.offered.order.index_select(0, position)[:, None]
        cost = self.offered.odds[place, self._channel[:, :height, 0].index_select(0, group)][..., None]
        geometry = self._geometry[:, :, :height].index_select(1, group)
        found = self.offered.planes.index_select(1, position)[:, :, None, None]
        compare_(cost, geometry, found, self.workspace)
        if self.published_quirks:
            cost.nan_to_num_(nan=-torch.inf, posinf=torch.inf)
        return box.gather(1, cost.argmin(1)).squeeze(1)


def compare_(odds: Tensor, box: Tensor, found: Tensor, workspace: Workspace) -> Tensor:
    """IoU of every pair; the odds of the box's class are replaced by the cost of the pair.

    Args:
        odds: (*pairs) odds of the box's class.
        box: (5, *pairs) geometry of the boxes; a dimension of 1 stands for any size.
        found: (6, *pairs) planes of the candidates; likewise.
        workspace: Where the result lies until the next call.
    """
    overlap = overlap_of(box, found, workspace)
    scratch = workspace.take("pair", tuple(odds.shape), odds)
    odds.log_().add_(torch.add(overlap, OVERLAP_FLOOR, out=scratch).log_(), alpha=OVERLAP_WEIGHT)
    torch.sub(found[OWN_PLANE], odds, out=odds)
    return overlap


def overlap_of(box: Tensor, found: Tensor, workspace: Workspace) -> Tensor:
    """IoU of every pair; arguments as for `compare_`."""
    shape = tuple(map(max, box.shape[1:], found.shape[1:]))
    overlap, scratch = workspace.take("overlap", shape, found), workspace.take("pair", shape, found)
    height = workspace.take("height", shape, found)
    torch.maximum(found[2], box[1], out=overlap)
    overlap.add_(torch.maximum(found[4], box[3], out=scratch)).clamp_(max=0.0)  # the common width, negated
    torch.maximum(found[3], box[2], out=height)
    height.add_(torch.maximum(found[5], box[4], out=scratch)).clamp_(max=0.0)
    overlap.mul_(height)
    overlap.div_(torch.add(found[0], box[0], out=scratch).sub_(overlap))
    return overlap
