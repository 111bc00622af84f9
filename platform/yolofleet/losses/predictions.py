"""Read the rows of some cells and the objectness of all, with one full-size gradient a level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolofleet.losses.hosting import copy_between
from yolofleet.losses.workspace import Workspace

OBJECTNESS, FIRST_CLASS = 4, 5  # the channels of a prediction: x, y, w, h, objectness, classes


def compute_dtype(predictions: Sequence[Tensor]) -> torch.dtype:
    """float64 for float64 predictions, else float32: half precision cannot hold the loss."""
    return torch.float64 if predictions[0].dtype == torch.float64 else torch.float32


def read_rows(predictions: Sequence[Tensor], cell: Tensor, level_sizes: Sequence[int], workspace: Workspace) -> Tensor:
    """Predictions at the given cells in the computing type, without gradient.

    Args:
        predictions: One (B, A, H, W, 5 + C) a level.
        cell: (n,) numbers of cells (image, anchor, row, column) counted through all levels, level after level.
        level_sizes: How many of them belong to each level.
        workspace: Where the result lies.

    Returns:
        (n, 5 + C).
    """
    like = predictions[0].new_empty(0, dtype=compute_dtype(predictions))
    table = workspace.take("rows", (len(cell), predictions[0].shape[4]), like)
    parts = _within_levels(cell, level_sizes, [level.shape[:4].numel() for level in predictions])
    for level, part, rows in zip(predictions, parts, torch.split(table, list(level_sizes)), strict=True):
        if level.dtype == rows.dtype:
            torch.index_select(level.detach().flatten(0, 3), 0, part, out=rows)
        else:
            rows.copy_(level.detach().flatten(0, 3).index_select(0, part))
    return table


def _within_levels(cell: Tensor, level_sizes: Sequence[int], level_cells: Sequence[int]) -> list[Tensor]:
    """Cell numbers counted through all levels as indices into each level."""
    starts = accumulate(level_cells, initial=0)
    return [part - start for part, start in zip(torch.split(cell, list(level_sizes)), starts, strict=False)]


class _Read(torch.autograd.Function):
    """Indexing a level twice (rows, objectness) would make autograd fill and add two full-size gradients."""

    @staticmethod
    def forward(ctx: Any, cell: Tensor, level_sizes: tuple[int, ...], *predictions: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cell)
        ctx.level_sizes = level_sizes
        ctx.levels = [(level.shape, level.dtype) for level in predictions]
        dtype, level_cells = compute_dtype(predictions), [level.shape[:4].numel() for level in predictions]
        objectness = predictions[0].new_empty(sum(level_cells), dtype=dtype)
        for level, column in zip(predictions, torch.split(objectness, level_cells), strict=True):
            copy_between(level[..., OBJECTNESS], column.view(level.shape[:4]))
        parts = _within_levels(cell, level_sizes, level_cells)
        rows = [level.flatten(0, 3).index_select(0, part) for level, part in zip(predictions, parts, strict=True)]
        return torch.cat(rows).to(dtype), objectness

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows: Tensor, objectness: Tensor) -> tuple[Tensor | None, ...]:
        (cell,) = ctx.saved_tensors
        sizes = list(ctx.level_sizes)
        level_cells = [shape[:4].numel() for shape, _ in ctx.levels]
        dense = torch.split(objectness, level_cells)
        parts = _within_levels(cell, sizes, level_cells)
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
    """Rows (n, 5 + C) as by `read_rows` and the objectness logits of all cells, both with gradient.

    The rows' own objectness carries its gradient as well.

    Returns:
        Rows (n, 5 + C), and objectness (cells of all levels,) flattened over (image, anchor, row, column) level by
        level.
    """
    rows, objectness = _Read.apply(cell, level_sizes, *predictions)  # type: ignore[no-untyped-call]
    return rows, objectness
