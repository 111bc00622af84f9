"""Memory for pixels that is used again, and that a bounded number of large images takes at a time."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray

LARGE_PIXELS = 32_000_000
"""Of the images that are larger, a pool's users decode one at a time."""
_REFERENCES_OF_A_FREE_BUFFER = 3  # the pool's list, the loop variable, and the argument of getrefcount
_ROUNDING_BYTES = 1 << 16
_MOST_WASTE = 2.0


class BufferPool:
    """Hands out uint8 arrays, and takes them back by itself when nothing refers to them any more.

    An array (or a tensor, or any view) made of a buffer holds a reference to it, so a buffer is free exactly when the
    pool alone knows it. Safe among threads.

    Args:
        most_bytes: Most bytes of all arrays that the pool keeps; further ones are allocated as usual.
    """

    def __init__(self, most_bytes: int = 1 << 30) -> None:
        self._most_bytes = most_bytes
        self._buffers: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()
        self._large = threading.Lock()

    @contextmanager
    def room_for(self, num_pixels: int) -> Iterator[None]:
        """Wait until no other large image is being decoded, where this one is large."""
        with self._large if num_pixels > LARGE_PIXELS else nullcontext():
            yield

    def take(self, *shape: int) -> NDArray[np.uint8]:
        """Return an array of a shape; its bytes are not initialised."""
        size = math.prod(shape)
        with self._lock:
            for buffer in self._buffers:
                fits = size <= buffer.size <= _MOST_WASTE * size + _ROUNDING_BYTES
                if fits and sys.getrefcount(buffer) <= _REFERENCES_OF_A_FREE_BUFFER:
                    return buffer[:size].reshape(shape)
            buffer = np.empty(-(-size // _ROUNDING_BYTES) * _ROUNDING_BYTES, dtype=np.uint8)
            self._forget_for(buffer.size)
            if sum(other.size for other in self._buffers) + buffer.size <= self._most_bytes:
                self._buffers.append(buffer)
            return buffer[:size].reshape(shape)

    def _forget_for(self, size: int) -> None:
        """Forget the oldest buffers, in use or of sizes that are not asked for any more, to make room."""
        total = sum(buffer.size for buffer in self._buffers)
        while self._buffers and total + size > self._most_bytes:
            total -= self._buffers.pop(0).size
