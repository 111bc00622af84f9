"""Scratch memory that is kept from call to call.

The tables of the matching are a few megabytes, and a general allocator gives memory of that size back to the system
after each call. On a CPU getting it again, page by page, then takes longer than the arithmetic done in it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from yolofleet.losses.hosting import is_countable


class Workspace:
    """Named buffers that grow to the largest size asked for; for one thread.

    Accelerators have an allocator that keeps memory; there every request is a new tensor.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._views: dict[tuple[str, torch.dtype], Tensor] = {}  # what was asked for last, often asked for again

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory of a shape, with the type and device of `like`; whatever was taken under the name is overwritten."""
        if not is_countable(like):
            return like.new_empty(shape)
        key = name, like.dtype
        last = self._views.get(key)
        if last is not None and last.shape == shape:
            return last
        size = math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[key] = like.new_empty(size)
        view = self._views[key] = buffer[:size].view(shape)
        return view
