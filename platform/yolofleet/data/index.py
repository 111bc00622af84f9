"""The binary index of a shard: where each sample's picture and annotation lie, and what is needed to plan with it.

Layout, little-endian: 8 bytes ``YFINDEX1``, the number of samples (u64), one row a sample (``ROW``), then the keys in
UTF-8, one a line. It is about 60 bytes a sample and lies beside its shard, so a manifest stays small at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.errors import UserError

MAGIC = b"YFINDEX1"
ROW = np.dtype(
    [
        ("image_offset", "<u8"),
        ("json_offset", "<u8"),
        ("image_bytes", "<u4"),
        ("json_bytes", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("num_objects", "<u4"),
    ]
)
_HEADER_BYTES = len(MAGIC) + 8


@dataclass(frozen=True)
class ShardIndex:
    """One row and one key for each sample of a shard, in the order of the shard.

    Attributes:
        rows: Structured array of ``ROW``: byte offsets and sizes within the shard, the picture's width and height in
            pixels, the number of its objects.
        keys: Keys of the samples.
    """

    rows: NDArray[Any]
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.rows)

    def to_bytes(self) -> bytes:
        """Return the index as it lies in storage."""
        count = np.array([len(self.rows)], dtype="<u8").tobytes()
        return MAGIC + count + self.rows.astype(ROW).tobytes() + "\n".join(self.keys).encode()

    @staticmethod
    def from_bytes(data: bytes, name: str) -> ShardIndex:
        """Read an index.

        Args:
            data: Its bytes.
            name: What to call it in messages.

        Raises:
            IndexFormatError: It is damaged, or of a format that this version does not know.
        """
        if data[: len(MAGIC)] != MAGIC:
            newer = data[:7] == MAGIC[:7]
            cure = "written by a newer yolofleet; update it" if newer else "no shard index; build the shards again"
            raise IndexFormatError(f"{name}: {cure} (it starts with {data[:8]!r})")
        count = int.from_bytes(data[len(MAGIC) : _HEADER_BYTES], "little")
        keys_start = _HEADER_BYTES + count * ROW.itemsize
        if len(data) < keys_start:
            raise IndexFormatError(f"{name}: cut short: {len(data)} bytes for {count} samples; build the shards again")
        rows = np.frombuffer(data, dtype=ROW, count=count, offset=_HEADER_BYTES)
        keys = data[keys_start:].decode(errors="replace").split("\n") if count else []
        if len(keys) != count:
            raise IndexFormatError(f"{name}: {len(keys)} keys for {count} samples; build the shards again")
        return ShardIndex(rows, keys)


class IndexFormatError(UserError):
    """A shard's index cannot be read."""
