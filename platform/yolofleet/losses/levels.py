"""The detector's levels as tensors: anchors, strides and grid sizes, made once for each device and image size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from yolofleet.losses.hosting import send

AnchorTable = tuple[tuple[tuple[float, float], ...], ...]  # levels, anchors, (width, height) in pixels


@dataclass(frozen=True)
class Levels:
    """What the levels are: L levels of A anchors. A prior is level x A + anchor.

    Attributes:
        starts: First cell of each level when the cells (image, anchor, row, column) of all levels are counted
            through, and the number of cells.
        grid: (L, 2) columns and rows.
        anchors: (L, A, 2) in cells of their level.
        first_cell: (L, A) number of the first cell of each prior.
        image_cells: (L,) cells of an image.
        prior_grid: (L A, 2) columns and rows of each prior's level.
        prior_anchors: (L A, 2) in cells.
        prior_strides: (L A, 1) pixels a cell.
    """

    starts: tuple[int, ...]
    grid: Tensor
    anchors: Tensor
    first_cell: Tensor
    image_cells: Tensor
    prior_grid: Tensor
    prior_anchors: Tensor
    prior_strides: Tensor


@lru_cache(maxsize=128)  # a few image sizes and devices; a constant made on a device anew each step would wait for it
def levels_on(
    anchors: AnchorTable,
    strides: tuple[int, ...],
    grids: tuple[tuple[int, int], ...],
    num_images: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Levels:
    """Make the tensors of the levels.

    Args:
        anchors: In pixels.
        strides: Pixels a cell, one a level.
        grids: Rows and columns of each level.
        num_images: Images in the micro-batch.
        device: Where the tensors will be used.
        dtype: Floating type of the computation.
    """
    num_anchors = len(anchors[0])
    planes = [rows * columns for rows, columns in grids]
    starts = tuple(num_images * num_anchors * sum(planes[:level]) for level in range(len(grids) + 1))
    with torch.inference_mode(False), torch.no_grad():  # they will be used with autograd later, whoever asks first
        stride = torch.tensor(strides, dtype=dtype)[:, None, None]  # (L, 1, 1)
        in_cells = torch.tensor(anchors, dtype=dtype) / stride  # (L, A, 2)
        grid = torch.tensor([[columns, rows] for rows, columns in grids], dtype=dtype)
        plane = torch.tensor(planes)[:, None]  # (L, 1)
        prior = in_cells.shape[:2]
        tables = (
            grid,
            in_cells,
            torch.tensor(starts[:-1])[:, None] + torch.arange(num_anchors) * plane,
            num_anchors * plane[:, 0],
            grid[:, None].expand(*prior, 2).reshape(-1, 2),
            in_cells.reshape(-1, 2),
            stride.expand(*prior, 1).reshape(-1, 1),
        )
        return Levels(starts, *(send(table.contiguous(), device) for table in tables))
