"""Scratch memory that is kept from call to call.

The tables of the matching are a few megabytes, and a general allocator gives memory of that size back to the system
after each call. On a CPU getting it again, page by page, then takes longer than the arithmetic done in it.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from yolofleet.losses.hosting import is_countable


class Workspace:
    """Named buffers that grow to the largest size asked for; each thread has its own.

    Accelerators have an allocator that keeps memory; there every request is a new tensor. A copy is empty.
    """

    def __init__(self) -> None:
        self._mine = _Buffers()

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory of a shape, with the type and device of `like`; whatever was taken under the name is overwritten."""
        if not is_countable(like):
            return like.new_empty(shape)
        key = name, like.dtype
        last = self._mine.views.get(key)
        if last is not None and last.shape == shape:
            return last
        size = math.prod(shape)
        buffer = self._mine.whole.get(key)
        with torch.inference_mode(False):  # what is made in inference mode cannot be written to outside of it
            if buffer is None or len(buffer) < size:
                buffer = self._mine.whole[key] = torch.empty(size, dtype=like.dtype)
            view = self._mine.views[key] = buffer[:size].view(shape)
        return view


class _Buffers(threading.local):
    """Buffers of one thread, and of each the view that was asked for last, which is often asked for again."""

    def __init__(self) -> None:
        self.whole: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[tuple[str, torch.dtype], Tensor] = {}
