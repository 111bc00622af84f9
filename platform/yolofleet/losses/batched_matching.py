"""Dynamic-k matching of a whole micro-batch: what `matching.match_image` computes, in bounded memory.

Boxes and candidates are laid out in groups, each a few tables of boxes x candidates, and a table is worked through a
bounded number of pairs at a time. What is kept of it is a short list for each box. So memory grows with boxes +
candidates, and time with their product on one image.

Nothing here waits for an accelerator: shapes are exact on a CPU and fixed on a device. With targets in host memory a
table is an image, and tables of a group are padded to the largest; with padded boxes their size follows from the
boxes'. With targets on a device, where the host does not know how many candidates an image has, one table holds all
boxes and candidates, and pairs of two images are masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Candidates
from yolofleet.losses.levels import find_slots, is_readable, send
from yolofleet.losses.matching import NO_BOX_IMAGE, NO_CANDIDATE_IMAGE, MatchingInput, compute_iou, compute_iou_cost

# Pairs compared at once. On a CPU a few tables of this size fit the cache; what is compiled has a piece of code for
# each time.
CPU_PAIRS, DEVICE_PAIRS, COMPILED_PAIRS = 1 << 19, 1 << 22, 1 << 25
PUBLISHED_INFINITY, PUBLISHED_NAN = 1e30, 2e30  # stand for such costs, and keep their published order


@dataclass(frozen=True)
class Group:
    """G tables of boxes x candidates."""

    box: Tensor
    """(G, M) the box of each row, N for none."""
    candidate: Tensor
    """(G, W) the candidate of each column, n for none."""
    is_shared: bool = False
    """Whether a table holds several images."""


def group_by_image(boxes: Boxes, candidates: Candidates, num_images: int, device: torch.device) -> list[Group]:
    """Group boxes and candidates, both where the targets are, for the device that compares them."""
    if boxes.per_image is not None:  # so each image has as many candidates of each level, one after the other
        box = torch.where(boxes.alive, torch.arange(len(boxes), device=device), len(boxes)).view(num_images, -1)
        candidate = torch.arange(len(candidates), device=device).view(len(candidates.level_sizes), num_images, -1)
        return [Group(box, candidate.transpose(0, 1).flatten(1))]
    if len(boxes) == 0 or len(candidates) == 0:
        return []
    if not is_readable(candidates.cell):
        box, candidate = (torch.arange(len(table), device=device)[None] for table in (boxes, candidates))
        return [Group(box, candidate, is_shared=True)]
    tables = list(zip(*(_split_by_image(table.image, num_images) for table in (boxes, candidates)), strict=True))
    groups = _pack([table for table in tables if len(table[0]) and len(table[1])]) if device.type == "cpu" else [tables]

    def pad(indices: Iterable[Tensor], nothing: int) -> Tensor:
        return send(pad_sequence(list(indices), batch_first=True, padding_value=nothing), device)

    pairs = (zip(*group, strict=True) for group in groups)
    return [Group(pad(box, len(boxes)), pad(candidate, len(candidates))) for box, candidate in pairs]


def _split_by_image(image: Tensor, num_images: int) -> list[Tensor]:
    counts = image.bincount(minlength=num_images).tolist()
    return list(torch.split(image.argsort(stable=True), counts))


def _pack(tables: list[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Put tables of like size together while their pairs, padded, can be compared at once."""
    group: list[tuple[Tensor, Tensor]] = []
    height = width = 0
    for box, candidate in sorted(tables, key=lambda table: len(table[0])):
        height, width = max(height, len(box)), max(width, len(candidate))
        if group and (len(group) + 1) * height * width > CPU_PAIRS:
            yield group
            group, height, width = [], len(box), len(candidate)
        group.append((box, candidate))
    if group:
        yield group


def match_batched(pairs: MatchingInput, groups: list[Group], num_best: int, published_quirks: bool) -> Tensor:
    """Match the groups of a micro-batch.

    Args:
        pairs: N boxes and n candidates.
        groups: Their layout.
        num_best: How many of the best overlaps make up k.
        published_quirks: Costs may be NaN or infinite; order them as the published implementation does.

    Returns:
        (n,) the box that each candidate answers for, N for none.
    """
    num_boxes, number = len(pairs.box_image), len(pairs.candidate_image)
    matched = torch.full((number + 1,), num_boxes, device=pairs.candidate_image.device)  # padding goes to the last
    for group in groups:
        tables = _gather(pairs, group)
        (num_tables, width), rows = group.candidate.shape, group.box[..., None]
        # 1. Each box selects its cheapest candidates. Rows without a box select nothing, which is column W.
        column = torch.cat(list(_select(tables, group.is_shared, num_best, published_quirks)), 1)  # (G, M, num_best)
        box = rows.expand(column.shape).flatten(1)
        column = torch.where(rows < num_boxes, column, width).flatten(1)
        # 2. A candidate that one box selected answers for that box.
        nothing = column.new_zeros(num_tables, width + 1)
        times_selected = nothing.scatter_add(1, column, torch.ones_like(column))[:, :width].flatten()
        box = (nothing + num_boxes).scatter(1, column, box)[:, :width].flatten()
        # 3. A candidate that several boxes selected goes to the box of the image that it is cheapest for.
        at_once = max(1, _count_pairs_at_once(box) // rows.shape[1])
        for some in torch.split(find_slots(times_selected > 1), at_once):
            row = _find_cheapest_row(tables, some, published_quirks)
            cheapest = group.box.flatten()[some // width * rows.shape[1] + row]
            box[some] = torch.where(times_selected[some] > 1, cheapest, box[some])
        matched[group.candidate.flatten()] = box
    return matched[:number]


def _gather(pairs: MatchingInput, group: Group) -> MatchingInput:
    """Gather what a group compares: (G, M) boxes and (G, W) candidates.

    Padding reads the last box or candidate, and has an image that equals no other. Candidates that are not available
    overlap nothing and cost infinity.
    """
    box = group.box.clamp(max=len(pairs.box_image) - 1)
    candidate = group.candidate.clamp(max=len(pairs.candidate_image) - 1)
    candidate_image = F.pad(pairs.candidate_image, (0, 1), value=NO_CANDIDATE_IMAGE)[group.candidate]
    unavailable = candidate_image == NO_CANDIDATE_IMAGE
    class_cost = pairs.class_cost.index_select(0, candidate.flatten()).view(*candidate.shape, -1)
    return MatchingInput(
        box_corners=pairs.box_corners[:, box],
        box_label=pairs.box_label[box],
        box_image=F.pad(pairs.box_image, (0, 1), value=NO_BOX_IMAGE)[group.box],
        candidate_corners=pairs.candidate_corners[:, candidate].masked_fill_(unavailable, 0.0),
        candidate_image=candidate_image,
        class_cost=class_cost.masked_fill_(unavailable[..., None], torch.inf),
    )


def _select(tables: MatchingInput, is_shared: bool, num_best: int, published_quirks: bool) -> Iterator[Tensor]:
    """Yield the columns that each box selects, some rows at a time: (G, rows, num_best), W for none."""
    class_cost = tables.class_cost.transpose(1, 2).contiguous()  # (G, C, W)
    num_tables, num_classes, width = class_cost.shape
    # A box's class cost of all candidates is one row of this table.
    class_row = tables.box_label + num_classes * torch.arange(num_tables, device=class_cost.device)[:, None]  # (G, M)
    class_cost = class_cost.flatten(0, 1)
    at_once = max(1, _count_pairs_at_once(class_cost) // (num_tables * width))
    for first in range(0, class_row.shape[1], at_once):
        rows = slice(first, first + at_once)
        iou = compute_iou(tables.box_corners[:, :, rows, None], tables.candidate_corners[:, :, None])  # (G, rows, W)
        cost = class_cost.index_select(0, class_row[:, rows].flatten()).view(iou.shape)
        cost.add_(compute_iou_cost(iou))
        if published_quirks:
            cost.nan_to_num_(nan=PUBLISHED_NAN, posinf=PUBLISHED_INFINITY)
            cost.masked_fill_((tables.candidate_image == NO_CANDIDATE_IMAGE)[:, None], torch.inf)
        if is_shared:
            foreign = tables.box_image[:, rows, None] != tables.candidate_image[:, None]
            iou.masked_fill_(foreign, 0.0)
            cost.masked_fill_(foreign, torch.inf)
        yield select_cheapest(iou, cost, num_best)


def select_cheapest(iou: Tensor, cost: Tensor, num_best: int) -> Tensor:
    """Select the k cheapest candidates of each box, of equal ones the first; infinite costs are never selected.

    Args:
        iou: (G, M, W) overlap.
        cost: (G, M, W).
        num_best: How many of the best overlaps make up k.

    Returns:
        (G, M, up to num_best) columns, W for none.
    """
    width = cost.shape[2]
    num_best = min(num_best, width)
    best = iou.topk(num_best, sorted=False).values.sum(2, keepdim=True)
    k = best.nan_to_num().long().clamp(1, num_best)  # (G, M, 1)
    lowest, column = cost.topk(min(num_best + 1, width), largest=False)
    limit, following = lowest.gather(2, k - 1), F.pad(lowest, (0, 1), value=torch.inf).gather(2, k)
    lowest, column, slot = lowest[..., :num_best], column[..., :num_best], torch.arange(num_best, device=cost.device)

    # Where more candidates cost the limit than are selected, topk chose any of them: take the first instead.
    row = find_slots(limit == following)
    at_limit = cost.flatten(0, 1).index_select(0, row) == limit.flatten(0, 1)[row]
    backwards = torch.arange(width, 0, -1, dtype=torch.int32, device=cost.device)
    first = width - torch.where(at_limit, backwards, 0).topk(num_best).values.long()  # (rows, num_best) columns
    after_below = slot - (lowest < limit).sum(2, keepdim=True).flatten(0, 1)[row]  # which of them stands in each slot
    column = column.flatten(0, 1)
    column[row] = torch.where(after_below >= 0, first.gather(1, after_below.clamp(min=0)), column[row])
    return torch.where((slot < k) & (lowest < torch.inf), column.view(lowest.shape), width)


def _find_cheapest_row(tables: MatchingInput, index: Tensor, published_quirks: bool) -> Tensor:
    """Find the row of the box that each of some candidates is cheapest for, of equal ones the first: (c,).

    `index` (c,) is of the group's flattened (G, W) candidates. The published implementation takes NaN for the cheapest.
    """
    table = index // tables.candidate_image.shape[1]
    candidate_corners = tables.candidate_corners.flatten(1).index_select(1, index)
    iou = compute_iou(tables.box_corners.index_select(1, table), candidate_corners[..., None])  # (c, M)
    class_cost = tables.class_cost.flatten(0, 1).index_select(0, index)  # (c, C)
    cost = class_cost.gather(1, tables.box_label.index_select(0, table)).add_(compute_iou_cost(iou))
    if published_quirks:
        cost.nan_to_num_(nan=-torch.inf, posinf=PUBLISHED_INFINITY)
    foreign = tables.box_image.index_select(0, table) != tables.candidate_image.flatten()[index, None]
    return cost.masked_fill_(foreign, torch.inf).argmin(1)


def _count_pairs_at_once(like: Tensor) -> int:
    if torch.compiler.is_compiling():
        return COMPILED_PAIRS
    return CPU_PAIRS if is_readable(like) else DEVICE_PAIRS
