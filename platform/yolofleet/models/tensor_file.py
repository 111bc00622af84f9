"""Safetensors files: the header is read and checked before anything else of the file is, then the tensors.

A header says how much memory its tensors take, and must agree with the size of the file. Its names and shapes can be
compared with those of a model before either is in memory.
"""

from __future__ import annotations

import io
import json
from math import prod
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.core.text import one_line, plural

MOST_HEADER_BYTES = 4 * 2**20
"""The largest model of the zoo needs a tenth of it."""
MOST_NAME = 400
MOST_DIMENSIONS = 8
MOST_NUMBER = 2**62
METADATA = "__metadata__"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorFileError(UserError):
    """A file is not safetensors, or its header does not describe it."""


class TensorHeader(NamedTuple):
    """A tensor as the header describes it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Position of its first byte in the file."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return prod(self.shape) * self.dtype.itemsize


class FileHeader(NamedTuple):
    """What the header of a file says."""

    tensors: dict[str, TensorHeader]
    metadata: dict[str, Any]


def read_header(file: BinaryIO) -> FileHeader:
    """Read and check the header of a file that is at its beginning.

    Raises:
        TensorFileError: It is not safetensors, or the tensors do not fill the file exactly.
    """
    num_bytes = int.from_bytes(file.read(8), "little")
    if not 2 <= num_bytes <= MOST_HEADER_BYTES:
        raise TensorFileError(f"not a safetensors file: its header would have {plural(num_bytes, 'byte')}")
    try:
        document = json.loads(file.read(num_bytes))
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"not a safetensors file: its header is not JSON ({one_line(error):.100})") from None
    if not isinstance(document, dict):
        raise TensorFileError("not a safetensors file: its header is not a JSON object")
    metadata = document.pop(METADATA, None)
    start, file_bytes = 8 + num_bytes, file.seek(0, io.SEEK_END)
    tensors = {name: _tensor_header(name, entry, start) for name, entry in document.items()}
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].num_bytes)):
        if tensor.begin != end:
            raise TensorFileError(
                f"damaged: tensor {name} begins at byte {tensor.begin:,}, the one before ends at {end:,}"
            )
        end += tensor.num_bytes
    if end != file_bytes:
        raise TensorFileError(f"damaged: it has {plural(file_bytes, 'byte')}, its header describes {end:,}")
    return FileHeader(tensors, metadata if isinstance(metadata, dict) else {})


def _tensor_header(name: str, entry: Any, start: int) -> TensorHeader:
    if len(name) > MOST_NAME or not name.isprintable():
        raise TensorFileError(f"a tensor has the name {name!r:.60}, which is none")
    match entry:
        case {"dtype": str(type_name), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            whole = all(type(number) is int and 0 <= number < MOST_NUMBER for number in (begin, end, *shape))
            whole = whole and prod(max(number, 1) for number in shape) < MOST_NUMBER
            if type_name not in DTYPES or len(shape) > MOST_DIMENSIONS or not whole:
                raise TensorFileError(
                    f"tensor {name} is a {type_name!r:.20} of shape {shape!r:.60}, which is not readable"
                )
            tensor = TensorHeader(DTYPES[type_name], tuple(shape), start + begin)
            if tensor.num_bytes == end - begin:
                return tensor
            raise TensorFileError(f"damaged: tensor {name} of shape {shape!r:.60} has {plural(end - begin, 'byte')}")
    raise TensorFileError(f"tensor {name} is described wrongly: {entry!r:.60}")


def load_tensors(file: BinaryIO) -> dict[str, Tensor]:
    """Read all tensors of a file that is at its beginning.

    Raises:
        TensorFileError: As `read_header`.
    """
    header = read_header(file)
    file.seek(0)
    return tensors_in(bytearray(file.read()), header)


def parse_tensors(data: bytes) -> dict[str, Tensor]:
    """Read all tensors of a file that is in memory.

    Raises:
        TensorFileError: As `read_header`.
    """
    return load_tensors(io.BytesIO(data))


def tensors_in(data: bytearray, header: FileHeader) -> dict[str, Tensor]:
    """Return the tensors of a whole file, which share its memory."""
    return {name: _view(data, tensor) for name, tensor in header.tensors.items()}


def _view(data: bytearray, tensor: TensorHeader) -> Tensor:
    if not tensor.num_bytes:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    begin = tensor.begin
    if begin % tensor.dtype.itemsize:  # a tensor may lie at any byte, but is computed with at multiples of its width
        data, begin = data[begin : begin + tensor.num_bytes], 0
    count = prod(tensor.shape)
    return torch.frombuffer(data, dtype=tensor.dtype, count=count, offset=begin).view(tensor.shape)
