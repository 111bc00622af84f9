"""Compare boxes with candidates: overlap and cost of every pair of a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Places
from yolofleet.losses.cost import class_cost_, published_class_cost
from yolofleet.losses.levels import Levels
from yolofleet.losses.workspace import Workspace

OVERLAP_WEIGHT = 3.0  # the published factor of -log(IoU) beside the class cost
OVERLAP_FLOOR = 1e-8


@dataclass(frozen=True)
class Rows:
    """Boxes of G groups as rows, r a group.

    Attributes:
        geometry: (5, G, r, 1) x1, y1, -x2, -y2 in pixels and the area.
        odds_row: (G r,) index into the columns' `odds`; that of nobody's class for an empty row.
        weight: (G, r, 1) N less the index of the box, 0 for an empty row.
        image: (G, r, 1) image index.
    """

    geometry: Tensor
    odds_row: Tensor
    weight: Tensor
    image: Tensor


@dataclass(frozen=True)
class Columns:
    """Candidates of G groups as columns, n a group.

    Attributes:
        geometry: (5, G, 1, n) x1, y1, -x2, -y2 of the decoded boxes in pixels and the area; 0 in empty columns.
        alone: (G, 1, n) the candidate's own part of the class cost; infinite in empty columns.
        odds: ((1 + C) G, n) odds of each class; those of nobody's class, the first, are 0.
        image: (G, 1, n) image index if a group holds several images, else None.
    """

    geometry: Tensor
    alone: Tensor
    odds: Tensor
    image: Tensor | None


def box_table(boxes: Boxes, levels: Levels, published_quirks: bool) -> Tensor:
    """Geometry, class row and image of each box and of nobody: (7, N + 1).

    The published implementation takes the image's height for its width.
    """
    pixels = levels.prior_grid[0] * levels.prior_strides[0]  # (2,) width and height of the image
    if published_quirks:
        pixels = pixels[1].expand(2)
    centre, size = boxes.xywh[:, :2] * pixels, boxes.xywh[:, 2:] * pixels
    class_row = (boxes.label + 1) * boxes.alive
    table = torch.stack(
        [
            *(centre - size / 2).unbind(1),
            *(-centre - size / 2).unbind(1),
            size[:, 0] * size[:, 1],
            class_row.to(size.dtype),
            boxes.image.to(size.dtype),
        ]
    )
    nobody = torch.zeros_like(table[:, :1])
    nobody[4] = 1.0  # an area, so that nothing is divided by 0
    return torch.cat([table, nobody], 1)


def rows_of(table: Tensor, box: Tensor) -> Rows:
    """Look up boxes (G, r) in a `box_table`."""
    groups, height = box.shape
    looked_up = table.index_select(1, box.flatten()).view(7, groups, height, 1)
    class_row = looked_up[5].view(groups, height).long()
    odds_row = class_row * groups + torch.arange(groups, device=box.device)[:, None]
    weight = (table.shape[1] - 1 - box).to(table.dtype)[..., None] * (looked_up[5] > 0)
    return Rows(looked_up[:5], odds_row.flatten(), weight, looked_up[6])


def candidate_geometry(places: Places, levels: Levels) -> Tensor:
    """What decoding needs of each candidate: (5, n) column, row, stride, and four times half the anchor in pixels."""
    prior = torch.cat([levels.prior_strides, levels.prior_anchors * levels.prior_strides * 2.0], 1)  # (L A, 3)
    cell = torch.stack([places.column, places.row]).to(prior.dtype)
    return torch.cat([cell, prior.t().index_select(1, places.prior)])


def columns_of(
    logits: Tensor,
    geometry: Tensor,
    candidate: Tensor,
    empty: Tensor,
    image: Tensor | None,
    published_quirks: bool,
    workspace: Workspace,
) -> Columns:
    """Decode candidates and price their classes.

    Args:
        logits: (n, 5 + C) raw predictions of the candidates.
        geometry: (5, n) from `candidate_geometry`.
        candidate: (G, width) the candidate of each column.
        empty: (G, width) which columns have none.
        image: (G, width) image index of each column if a group holds several images.
        published_quirks: Price classes as published.
        workspace: Where the columns lie until the next call.
    """
    groups, width = candidate.shape
    chosen = candidate.flatten()
    shape = (len(chosen), logits.shape[1])
    picked = torch.index_select(logits, 0, chosen, out=workspace.take("picked", shape, logits))
    planes = workspace.take("planes", shape[::-1], logits).copy_(picked.t())  # (5 + C, G width)
    column, row, stride, anchor_width, anchor_height = geometry.index_select(1, chosen).unbind(0)
    planes[:4].sigmoid_()
    centre = planes[:2].mul_(2.0).sub_(0.5).add_(torch.stack([column, row])).mul_(stride)  # (2, G width)
    half = planes[2:4].square_().mul_(torch.stack([anchor_width, anchor_height]))
    odds = workspace.take("picked", (1 + len(planes) - 5, len(chosen)), logits)  # over what was picked
    odds[0] = 0.0  # of nobody's class
    alone = (published_class_cost if published_quirks else class_cost_)(planes[5:], planes[4], odds[1:])

    area = 4.0 * half[0] * half[1]
    boxes = torch.cat([centre - half, -centre - half, area[None]]).view(5, groups, 1, width)
    return Columns(
        geometry=boxes.masked_fill_(empty[:, None], 0.0),
        alone=alone.view(groups, 1, width).masked_fill_(empty[:, None], torch.inf),
        odds=odds.view(-1, width),
        image=None if image is None else image[:, None],
    )


def compare(rows: Rows, columns: Columns, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """IoU and cost of every pair: both (G, r, n), in the workspace until the next call.

    Empty rows, empty columns and pairs from different images have no overlap and infinite cost.
    """
    box, found = rows.geometry, columns.geometry
    shape = (*rows.weight.shape[:2], columns.alone.shape[2])
    overlap, height, scratch, cost = (
        workspace.take(name, shape, columns.alone) for name in ("overlap", "height", "scratch", "cost")
    )
    torch.maximum(found[0], box[0], out=overlap)
    overlap.add_(torch.maximum(found[2], box[2], out=scratch)).clamp_(max=0.0)  # the common width, negated
    torch.maximum(found[1], box[1], out=height)
    height.add_(torch.maximum(found[3], box[3], out=scratch)).clamp_(max=0.0)
    overlap.mul_(height)
    overlap.div_(torch.add(found[4], box[4], out=scratch).sub_(overlap))

    torch.index_select(columns.odds, 0, rows.odds_row, out=cost.view(-1, shape[2]))
    cost.log_().add_(torch.add(overlap, OVERLAP_FLOOR, out=height).log_(), alpha=OVERLAP_WEIGHT)
    torch.sub(columns.alone, cost, out=cost)
    if columns.image is not None:
        foreign = columns.image != rows.image
        overlap.masked_fill_(foreign, 0.0)
        cost.masked_fill_(foreign, torch.inf)
    return overlap, cost
