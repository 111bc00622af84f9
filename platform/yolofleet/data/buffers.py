"""Memory that is used again. Fresh pages cost a training sample a quarter of its time; warm ones cost nothing."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
from numpy.typing import NDArray

_REFERENCES_OF_A_FREE_BUFFER = 3  # the pool's list, the loop variable, and the argument of getrefcount
_ROUNDING_BYTES = 1 << 16
_MOST_WASTE = 2.0


class BufferPool:
    """Hands out uint8 arrays, and takes them back by itself when nothing refers to them any more.

    An array (or a tensor, or any view) made of a buffer holds a reference to it, so a buffer is free exactly when the
    pool alone knows it. Safe among threads.

    Args:
        most_bytes: What the pool remembers together; beyond that, arrays are made as usual.
    """

    def __init__(self, most_bytes: int = 1 << 30) -> None:
        self._most_bytes = most_bytes
        self._buffers: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, *shape: int) -> NDArray[np.uint8]:
        """Return an array of a shape with whatever bytes are in it."""
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
        """Forget the longest known buffers, in use or of sizes that are not asked for any more, to make room."""
        total = sum(buffer.size for buffer in self._buffers)
        while self._buffers and total + size > self._most_bytes:
            total -= self._buffers.pop(0).size
