"""The detector's levels: anchors, strides and grids as tensors, and how predictions are read from them.

The tensors are made once for each device and image size. Predictions are read with one full-size gradient a level.

How many slots of a table are in use is known at once where the table lies in host memory. On an accelerator, asking
makes the host wait until the device has caught up. So tables on a CPU are shortened to the slots in use, and tables
on a device keep their full shape with a mask (`find_slots`); the code that reads them is the same for both. What torch
compiles has full tables everywhere, for its shapes must not follow from values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_readable(tensor: Tensor) -> bool:
    """Whether values can be read now: on a device the host would wait for them, and a compiler has none."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def find_slots(mask: Tensor) -> Tensor:
    """Flat indices (n,) of the marked entries on a CPU, of all entries on a device."""
    if is_readable(mask):
        return mask.flatten().nonzero().squeeze(1)
    return torch.arange(mask.numel(), device=mask.device)


def count_slots(parts: Tensor) -> tuple[int, ...]:
    """For a mask (parts, ...): how many indices `find_slots` returns from each part."""
    if is_readable(parts):
        return tuple(parts.flatten(1).sum(1).tolist())
    return (parts[0].numel(),) * len(parts)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without making the host wait."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy from pageable memory first waits for the device
    return tensor.to(device, non_blocking=True)


OBJECTNESS, FIRST_CLASS = 4, 5  # the channels of a prediction: x, y, w, h, objectness, classes

# The cell itself, then the neighbours on the left, above, on the right, below: how far the centre is moved, as (x, y).
NEIGHBOURS = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))
AnchorTable = tuple[tuple[tuple[float, float], ...], ...]  # levels, anchors, (width, height) in pixels


@dataclass(frozen=True)
class Levels:
    """What the levels are: L levels of A anchors. A prior is level x A + anchor."""

    starts: tuple[int, ...]
    """First cell of each level when the cells (image, anchor, row, column) of all levels are counted through, and the
    number of cells."""
    grid: Tensor
    """(L, 2) columns and rows."""
    anchors: Tensor
    """(L, A, 2) in cells of their level."""
    first_cell: Tensor
    """(L, A) number of the first cell of each prior."""
    image_cells: Tensor
    """(L,) cells of an image."""
    prior_grid: Tensor
    """(L A, 2) columns and rows of each prior's level."""
    prior_anchors: Tensor
    """(L A, 2) in cells."""
    prior_strides: Tensor
    """(L A, 1) pixels a cell."""
    neighbours: Tensor
    """(5, 2, 1) how far a centre is moved to lie in its own cell and in each of the neighbours, as (x, y)."""


@lru_cache(maxsize=128)  # a few image sizes and devices; a constant made on a device anew each step would wait for it
def make_levels(
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
    with torch.inference_mode(False), torch.no_grad():  # they will be used with autograd later
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
            torch.tensor(NEIGHBOURS, dtype=dtype)[..., None],
        )
        return Levels(starts, *(send(table.contiguous(), device) for table in tables))


def choose_dtype(predictions: Sequence[Tensor]) -> torch.dtype:
    """float64 for float64 predictions, else float32: half precision cannot hold the loss."""
    return torch.float64 if predictions[0].dtype == torch.float64 else torch.float32


def read_rows(predictions: Sequence[Tensor], cell: Tensor, level_sizes: Sequence[int]) -> Tensor:
    """Read the predictions of some cells in the computing type.

    Args:
        predictions: One (B, A, H, W, 5 + C) a level.
        cell: (n,) numbers of cells (image, anchor, row, column) counted through all levels, level after level.
        level_sizes: How many of them belong to each level.

    Returns:
        (n, 5 + C).
    """
    parts = _split_by_level(cell, level_sizes, [level.shape[:4].numel() for level in predictions])
    rows = [level.flatten(0, 3).index_select(0, part) for level, part in zip(predictions, parts, strict=True)]
    return torch.cat(rows).to(choose_dtype(predictions))


def _split_by_level(cell: Tensor, level_sizes: Sequence[int], level_cells: Sequence[int]) -> list[Tensor]:
    """Turn cell numbers counted through all levels into indices of each level."""
    starts = accumulate(level_cells, initial=0)
    return [part - start for part, start in zip(torch.split(cell, list(level_sizes)), starts, strict=False)]


class _Read(torch.autograd.Function):
    """Indexing a level twice (rows, objectness) would make autograd fill and add two full-size gradients."""

    @staticmethod
    def forward(ctx: Any, cell: Tensor, level_sizes: tuple[int, ...], *predictions: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cell)
        ctx.level_sizes = level_sizes
        ctx.levels = [(level.shape, level.dtype) for level in predictions]
        objectness = torch.cat([level[..., OBJECTNESS].flatten() for level in predictions])
        return read_rows(predictions, cell, level_sizes), objectness.to(choose_dtype(predictions))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows: Tensor, objectness: Tensor) -> tuple[Tensor | None, ...]:
        (cell,) = ctx.saved_tensors
        sizes = list(ctx.level_sizes)
        level_cells = [shape[:4].numel() for shape, _ in ctx.levels]
        dense = torch.split(objectness, level_cells)
        parts = _split_by_level(cell, sizes, level_cells)
        gradients = []
        for (shape, dtype), part, row, column in zip(ctx.levels, parts, torch.split(rows, sizes), dense, strict=True):
            gradient = torch.zeros(shape, dtype=dtype, device=rows.device)
            gradient[..., OBJECTNESS] = column.view(shape[:4])
            gradient.view(-1, shape[4]).index_add_(0, part, row.to(dtype))
            gradients.append(gradient)
        return None, None, *gradients


def read_predictions(
    predictions: Sequence[Tensor], cell: Tensor, level_sizes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Read rows as `read_rows` does, and the objectness of all cells (flat, level by level), both with gradient."""
    rows, objectness = _Read.apply(cell, level_sizes, *predictions)  # type: ignore[no-untyped-call]
    return rows, objectness
