"""Reader of foreign checkpoints that runs nothing in them: the pickle inside is read as inert data.

A ``.pt`` file is a zip archive: a pickle that describes objects, and one record of bytes for each tensor storage. The
published files pickle whole module objects, so loading them the usual way imports and calls whatever they name. Here
`yolofleet.models.inert_pickle` follows the pickle: every object of a class is replaced by ``Inert``, and the weights
are collected from the tree of these, and the names of the classes where it has them. What the file says of its own size
is checked before it is used.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from yolofleet.core.local_files import open_regular
from yolofleet.core.text import one_line, plural
from yolofleet.models.inert_pickle import MOST_TENSORS, CheckpointError, Inert, read_pickle
from yolofleet.models.tensor_file import TensorFileError, read_header, tensors_in

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint", "read_checkpoint"]

MOST_FILE_BYTES = 64 * 2**30
MOST_PICKLE_BYTES = 8 * 2**20
MOST_DIRECTORY_BYTES = 2 * 2**20
"""Of a zip archive; each of its files takes about 600 bytes of memory."""
MOST_DEPTH = 200
MOST_ENTRIES = 100_000
"""Entries of all modules, a shared module counted each time that it is met."""
MOST_NAME = 400
MOST_SHARING = 2
"""Most bytes of weights for each byte of the file: tensors may share a storage, but cannot fill the memory."""
WEIGHT_KEYS = ("ema", "model", "state_dict")
NAMES_KEY = "names"
"""Attribute of a published module, key of a training state, or key of the metadata of safetensors (JSON)."""
MOST_CLASSES = 10_000
MOST_CLASS_NAME = 200
DAMAGE = (
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    EOFError,
    IndexError,
)
"""What `zipfile` raises for archives that are none."""


@dataclass(frozen=True)
class Checkpoint:
    """What is taken from a foreign file."""

    weights: dict[str, Tensor] = field(repr=False)
    """Name -> tensor; half precision became float32."""
    class_names: tuple[str, ...] | None = None
    """The names of its classes by their index; None where it names none."""


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the weights of `open_checkpoint`."""
    return open_checkpoint(path).weights


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights of a ``.pt`` or ``.safetensors`` file; nothing in the file is imported or called.

    Where a file holds a training state (``model``, ``ema``), the averaged weights are taken if there are any.

    Args:
        path: A file written by ``torch.save`` in its zip format, or safetensors.

    Returns:
        The weights, and the names of the classes where the file has them.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or holds no weights.
    """
    path = Path(path)
    try:
        with open_regular(path, MOST_FILE_BYTES) as file:
            file_bytes = path.stat().st_size
            read = _read_safetensors(file) if path.suffix == ".safetensors" else _read_archive(file, file_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (CheckpointError, TensorFileError) as error:
        raise CheckpointError(f"{path}: {error}; nothing in it was run; get it again from its publisher") from None
    if not read.weights:
        raise CheckpointError(f"{path}: it holds no weights: no 'model', 'ema' or state dict with tensors was found")
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in read.weights.values())
    if num_bytes > MOST_SHARING * file_bytes:
        raise CheckpointError(f"{path}: its weights, {plural(num_bytes, 'byte')}, do not fit into the file")
    return Checkpoint({name: _full_precision(tensor) for name, tensor in read.weights.items()}, read.class_names)


def _read_safetensors(file: BinaryIO) -> Checkpoint:
    header = read_header(file)
    file.seek(0)
    names = header.metadata.get(NAMES_KEY)
    try:
        document = json.loads(names) if isinstance(names, str) else None
    except (ValueError, RecursionError):
        document = None
    return Checkpoint(tensors_in(bytearray(file.read()), header), _class_names(document))


def _class_names(names: Any) -> tuple[str, ...] | None:
    """Return names that are a list of text, or texts by the numbers 0 to n - 1; None for anything else."""
    if isinstance(names, dict):
        names = [names.get(number, names.get(str(number))) for number in range(min(len(names), MOST_CLASSES + 1))]
    if not isinstance(names, list) or not 1 <= len(names) <= MOST_CLASSES:
        return None
    if not all(isinstance(name, str) and name.strip() and len(name) <= MOST_CLASS_NAME for name in names):
        return None
    return tuple(names)


def _full_precision(tensor: Tensor) -> Tensor:
    """Return a copy of its own, in float32 where the file saved room."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.clone()


class _BoundedReads:
    """A file for `zipfile`, which reads the whole directory of an archive at once, whatever its size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.most_bytes = MOST_DIRECTORY_BYTES
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(self.most_bytes + 1 if count < 0 else min(count, self.most_bytes + 1))
        if len(data) > self.most_bytes:
            raise CheckpointError(f"its zip directory has more than the {self.most_bytes:,} bytes that it may have")
        return data


class _Records:
    """The records of an archive; together no larger than it, though several may name the same bytes."""

    def __init__(self, archive: zipfile.ZipFile, root: str, file_bytes: int) -> None:
        self._archive, self._root, self._bytes_left = archive, root, file_bytes
        self._storages: dict[str, Tensor] = {}

    def read(self, name: str, most_bytes: int) -> bytes:
        try:
            info = self._archive.getinfo(f"{self._root}{name}")
        except KeyError:
            raise CheckpointError(f"record {name!r:.60} is missing") from None
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CheckpointError(f"record {name!r:.60} is compressed, which torch.save never does")
        if info.file_size > most_bytes:
            raise CheckpointError(
                f"record {name!r:.60} has {plural(info.file_size, 'byte')}, more than the {most_bytes} it may have"
            )
        self._bytes_left -= info.file_size
        if self._bytes_left < 0:
            raise CheckpointError(f"its records have more bytes than the file, up to {name!r:.60}")
        return self._archive.read(info)

    def storage(self, dtype: torch.dtype, key: str, num_elements: int) -> Tensor:
        """Return a storage as a flat tensor."""
        if key not in self._storages:
            num_bytes = max(num_elements, 0) * dtype.itemsize
            data = self.read(f"data/{key}", num_bytes)
            if num_elements < 0 or len(data) < num_bytes:
                raise CheckpointError(f"storage {key!r:.60} holds {plural(len(data), 'byte')} of {num_bytes:,}")
            self._storages[key] = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(dtype)
        return self._storages[key]


def _read_archive(file: BinaryIO, file_bytes: int) -> Checkpoint:
    bounded = _BoundedReads(file)
    try:
        archive = zipfile.ZipFile(bounded)
        bounded.most_bytes = MOST_FILE_BYTES
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(names) != 1:
            raise CheckpointError("a zip archive, but not one that torch.save wrote (no data.pkl)")
        records = _Records(archive, names[0].removesuffix("data.pkl"), file_bytes)
        content = read_pickle(records.read("data.pkl", MOST_PICKLE_BYTES), records.storage)
    except zipfile.BadZipFile:
        raise CheckpointError(
            "not a zip archive, or a damaged one; files older than torch 1.6 must be written again with a newer torch "
            "by their owner"
        ) from None
    except DAMAGE as error:
        raise CheckpointError(f"a damaged zip archive ({type(error).__name__}: {one_line(error):.100})") from None
    return _checkpoint_in(content)


def _checkpoint_in(content: Any) -> Checkpoint:
    """Find the weights: in a module tree, a state dict, or a training state that holds one of them."""
    names = None
    for _ in range(MOST_DEPTH):
        if isinstance(content, Inert):
            return Checkpoint(_named(_module_weights(content)), _class_names(content.state.get(NAMES_KEY)) or names)
        if not isinstance(content, dict):
            return Checkpoint({}, names)
        names = _class_names(content.get(NAMES_KEY)) or names
        inner = [content[key] for key in WEIGHT_KEYS if isinstance(content.get(key), dict | Inert)]
        if not inner:
            named = ((name, value) for name, value in content.items() if isinstance(name, str))
            return Checkpoint(_named((name, value) for name, value in named if isinstance(value, Tensor)), names)
        content = inner[0]
    raise CheckpointError(f"its weights are nested more than {MOST_DEPTH} deep, or hold themselves")


def _named(weights: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Gather weights by name; what is no name is refused, for names are printed."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights:
        if len(name) > MOST_NAME or not name.isprintable():
            raise CheckpointError(f"a weight has the name {name!r:.60}, which is none")
        found[name] = tensor
        if len(found) > MOST_TENSORS:
            raise CheckpointError(f"it has more than the {MOST_TENSORS:,} weights that it may have")
    return found


def _module_weights(root: Inert) -> Iterator[tuple[str, Tensor]]:
    """Walk a pickled ``torch.nn.Module``: its parameters, buffers and modules are entries of its state."""
    waiting, num_entries = [(root, "", 0)], 0
    while waiting:
        module, prefix, depth = waiting.pop()
        parts = [module.state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
        parameters, buffers, modules = (part if isinstance(part, dict) else {} for part in parts)
        num_entries += 1 + len(parameters) + len(buffers) + len(modules)
        if depth > MOST_DEPTH or num_entries > MOST_ENTRIES:
            raise CheckpointError(
                f"its modules are nested more than {MOST_DEPTH} deep, or have more than {MOST_ENTRIES:,} entries"
            )
        for name, value in (*parameters.items(), *buffers.items()):
            if isinstance(value, Tensor) and isinstance(name, str):
                yield f"{prefix}{name}", value
        for name, child in reversed(modules.items()):
            if isinstance(child, Inert) and isinstance(name, str):
                waiting.append((child, f"{prefix}{name}."[: MOST_NAME + 1], depth + 1))
