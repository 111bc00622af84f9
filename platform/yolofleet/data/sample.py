"""One sample of a dataset: as it is stored, decoded, or why it cannot be used."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.data.records import ImageRecord


class SampleError(UserError):
    """One sample cannot be used; ``reason`` is a short word to count it by, ``key`` names the sample."""

    def __init__(self, reason: str, message: str, key: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.key = key


class Sample(NamedTuple):
    """One sample as stored in its shard: encoded image and annotation."""

    key: str
    image: bytes
    annotation: bytes


class DecodedSample(NamedTuple):
    """One sample, its image decoded in full or at a reduced size."""

    key: str
    record: ImageRecord
    pixels: NDArray[np.uint8]
    """(height, width, 3) uint8 RGB, the way up that the record speaks of."""
    size: tuple[int, int]
    """(width, height) of the image in full."""
