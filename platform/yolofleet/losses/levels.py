"""The detector's levels as tensors: anchors, strides and grid sizes, made once for each device and picture size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from yolofleet.losses.hosting import send

AnchorTable = tuple[tuple[tuple[float, float], ...], ...]  # levels, anchors, (width, height) in pixels


@dataclass(frozen=True)
class Levels:
    """What the levels are; L levels of A anchors. A prior is level x A + anchor.

    Attributes:
        grid: (L, 2) columns and rows.
        anchors: (L, A, 2) in cells of their level.
        prior_grid: (L A, 2) columns and rows of each prior's level.
        prior_anchors: (L A, 2) in cells.
        prior_strides: (L A, 1) pixels a cell.
    """

    grid: Tensor
    anchors: Tensor
    prior_grid: Tensor
    prior_anchors: Tensor
    prior_strides: Tensor


@lru_cache(maxsize=128)  # a few picture sizes and devices; a constant made on a device anew each step would wait for it
def levels_on(
    anchors: AnchorTable,
    strides: tuple[int, ...],
    grids: tuple[tuple[int, int], ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Levels:
    """Make the tensors of the levels.

    Args:
        anchors: In pixels.
        strides: Pixels a cell, one a level.
        grids: Rows and columns of each level.
        device: Where the tensors will be used.
        dtype: Floating type of the computation.
    """
    with torch.inference_mode(False), torch.no_grad():  # they will be used with autograd later, whoever asks first
        stride = torch.tensor(strides, dtype=dtype)[:, None, None]  # (L, 1, 1)
        in_cells = torch.tensor(anchors, dtype=dtype) / stride  # (L, A, 2)
        grid = torch.tensor([[columns, rows] for rows, columns in grids], dtype=dtype)
        prior = in_cells.shape[:2]
        tables = (
            grid,
            in_cells,
            grid[:, None].expand(*prior, 2).reshape(-1, 2),
            in_cells.reshape(-1, 2),
            stride.expand(*prior, 1).reshape(-1, 1),
        )
        return Levels(*(send(table.contiguous(), device) for table in tables))
