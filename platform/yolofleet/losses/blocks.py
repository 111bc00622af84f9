"""Candidates of an image in blocks of like ones, and what a block can promise to a box at most.

Candidates that are alike in size and place make a block, and what they have at best makes its envelope: least area,
outermost corners, and for each class the least class cost. Compared with a box, the envelope gives an overlap that no
candidate of the block exceeds and a cost that none undercuts. Rounding keeps that true, for every operation of
the comparison grows or falls with its arguments; only the logarithm may not in its last bits, so a caller leaves a
margin in costs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolofleet.losses.comparison import (
    NUM_PLANES,
    OVERLAP_FLOOR,
    OVERLAP_WEIGHT,
    OWN_PLANE,
    compare_,
    overlap_of,
)
from yolofleet.losses.hosting import copy_between
from yolofleet.losses.workspace import Workspace

Indices = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]

BLOCK_WIDTH = 16
NUM_SHARES = 16  # of the blocks; blocks whose candidates are alike are in different ones


class Blocks:
    """The blocks of an image, compared with its boxes. One at a time has the workspace.

    Args:
        boxes: (5, N) geometry as in `Wanted`.
        label: (N,) class index.
        planes: (6, n) candidates as in `Offered`, all of it finite.
        odds: (n, C) their odds.
        workspace: Scratch memory.

    Attributes:
        number: How many blocks, a multiple of `NUM_SHARES`; a share is a run of them.
        candidate: (number x width,) which candidate has each place, -1 for none.
    """

    def __init__(self, boxes: Tensor, label: Tensor, planes: Tensor, odds: Tensor, workspace: Workspace) -> None:
        self._boxes, self._label, self._workspace = boxes, label, workspace
        self.candidate = _alike_together(planes.numpy())
        self.number = len(self.candidate) // BLOCK_WIDTH
        candidate = torch.from_numpy(self.candidate.clip(min=0))
        geometry = planes.index_select(1, candidate)
        spare = torch.from_numpy(np.flatnonzero(self.candidate < 0))
        geometry[:, spare] = 0.0
        geometry[OWN_PLANE, spare] = torch.inf
        self._geometry = geometry.view(-1, self.number, BLOCK_WIDTH)
        by_class = workspace.take("blocks", (odds.shape[1], len(candidate)), odds)
        copy_between(odds.index_select(0, candidate).t(), by_class)
        self._odds = by_class.view(-1, self.number, BLOCK_WIDTH)
        self._envelope = self._geometry.amin(2)  # (6, blocks)
        class_cost = torch.log(self._odds, out=workspace.take("class cost", tuple(self._odds.shape), planes))
        class_cost.neg_().add_(self._geometry[OWN_PLANE])
        self._least_class_cost = class_cost.amin(2)  # (C, blocks)

    def promise(self, boxes: slice) -> tuple[Numbers, Numbers]:
        """Overlap that no candidate of a block exceeds, and cost that none undercuts: two (boxes, blocks)."""
        label = self._label[boxes]
        cost = self._workspace.take("promise", (len(label), self.number), self._odds)
        torch.index_select(self._least_class_cost, 0, label, out=cost)
        overlap = overlap_of(self._boxes[:, boxes, None], self._envelope[:, None], self._workspace)
        cost.sub_((overlap + OVERLAP_FLOOR).log_(), alpha=OVERLAP_WEIGHT)
        return overlap.numpy().copy(), cost.numpy()

    def compare(self, box: Indices, block: Indices) -> tuple[Numbers, Numbers]:
        """Overlap and cost for boxes (m,) of the candidates of blocks (m,): two (m, width), until the next call."""
        which, row = torch.from_numpy(box), torch.from_numpy(block)
        cost = self._workspace.take("cost", (len(box), BLOCK_WIDTH), self._odds)
        odds = self._label.index_select(0, which).mul_(self.number).add_(row)
        torch.index_select(self._odds.view(-1, BLOCK_WIDTH), 0, odds, out=cost)
        found = self._workspace.take("found", (NUM_PLANES, *cost.shape), self._odds)
        rows = torch.arange(NUM_PLANES)[:, None] * self.number + row
        torch.index_select(self._geometry.view(-1, BLOCK_WIDTH), 0, rows.flatten(), out=found.view(-1, BLOCK_WIDTH))
        overlap = compare_(cost, self._boxes.index_select(1, which)[..., None], found, self._workspace)
        return overlap.numpy(), cost.numpy()


def _alike_together(planes: Numbers) -> Indices:
    """Candidates ordered so that those of a block are alike in width, height and place: the leaves of a k-d tree.

    Args:
        planes: (6, n) geometry.

    Returns:
        (blocks x width,) candidates, -1 for none.
    """
    number = planes.shape[1]
    num_leaves = -(-number // (BLOCK_WIDTH * NUM_SHARES)) * NUM_SHARES
    low, high = planes[2:4].astype(np.float64), -planes[4:6].astype(np.float64)
    features = np.concatenate([high - low, high + low])
    features -= features.min(1, keepdims=True)
    features /= features.max(1, keepdims=True) + 1.0  # below 1
    order, leaf = np.arange(number), np.arange(number) // BLOCK_WIDTH
    cuts, parts = max(2, round(num_leaves**0.25)), 1
    for feature, num_cuts in zip(features, (cuts - 1, cuts - 1, cuts + 1, 1), strict=True):
        order = order[np.argsort(leaf * parts // num_leaves + feature[order])]
        parts *= num_cuts
    leaves = np.pad(order, (0, num_leaves * BLOCK_WIDTH - number), constant_values=-1)
    return leaves.reshape(-1, NUM_SHARES, BLOCK_WIDTH).swapaxes(0, 1).ravel()
