"""Tensors packed as a safetensors file in memory that is allocated once and filled again for every checkpoint.

Training waits only for the filling: one copy of every tensor to its position in the file. A new allocation would cost
as much again, for the system hands out memory page by page at its first use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from yolofleet.models.tensor_file import DTYPES

TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER_ALIGNMENT_BYTES = 8

Tensors = Mapping[str, torch.Tensor]


class PackedTensors:
    """A safetensors file whose names, types and shapes stay the same.

    Attributes:
        data: The file. It changes with the next `fill`.
    """

    def __init__(self, tensors: Tensors) -> None:
        # The widest types first, so that every tensor lies at a multiple of its width.
        ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
        header: dict[str, dict[str, object]] = {}
        end = 0
        offsets: dict[str, int] = {}
        for name, tensor in ordered:
            begin, end = end, end + tensor.numel() * tensor.element_size()
            offsets[name] = begin
            header[name] = {
                "dtype": TYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % HEADER_ALIGNMENT_BYTES)
        start = 8 + len(text)
        self.data = bytearray(start + end)
        self.data[:8] = len(text).to_bytes(8, "little")
        self.data[8:start] = text
        self._layout = _layout(tensors)
        self._slots: dict[str, torch.Tensor] = {}
        for name, begin in offsets.items():
            like = tensors[name]
            if like.numel():
                slot = torch.frombuffer(self.data, dtype=like.dtype, count=like.numel(), offset=start + begin)
                slot.fill_(0)  # the system hands out the pages now, not when training waits
                self._slots[name] = slot.view(like.shape)

    def fits(self, tensors: Tensors) -> bool:
        """Return whether these are tensors of the same names, types and shapes."""
        return self._layout == _layout(tensors)

    @torch.no_grad()
    def fill(self, tensors: Tensors) -> None:
        """Copy the tensors, from whatever device, into the file."""
        for name, slot in self._slots.items():
            slot.copy_(tensors[name])


def _layout(tensors: Tensors) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
