"""Reader of foreign checkpoints that runs nothing in them: the pickle inside is read as inert data.

A ``.pt`` file is a zip archive: a pickle that describes objects, and one record of bytes for each tensor storage. The
published files pickle whole module objects, so loading them the usual way imports and calls whatever they name. Here
the unpickler resolves every global itself: storages and tensors are built by functions of this file, ordered
dictionaries are plain ones, and every other class is replaced by ``Inert``, which keeps its arguments and does nothing.
The weights are then collected from the tree of inert objects.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolofleet.core.errors import UserError

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MOST_PICKLE_BYTES = 64 * 2**20
MOST_DEPTH = 200
MOST_SHARING = 2
"""Most bytes of weights for each byte of the file: tensors may share a storage, but cannot fill the memory."""
WEIGHT_KEYS = ("ema", "model", "state_dict")


class CheckpointError(UserError):
    """A file that is not a readable checkpoint; nothing in it was run."""


class Inert:
    """Replaces any object of a foreign class: it keeps its state and does nothing."""

    state: dict[Any, Any]
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Take any arguments; a pickle may leave out ``__init__``."""
        inert = super().__new__(cls)
        inert.state, inert.items = {}, []
        return inert

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.state.update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value

    def append(self, item: Any) -> None:
        """Keep an item."""
        self.items.append(item)

    def extend(self, items: Any) -> None:
        """Keep items."""
        self.items.extend(items)

    def add(self, item: Any) -> None:
        """Keep an item."""
        self.items.append(item)

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """Return another inert object."""
        return Inert()


class InertDict(dict[Any, Any]):
    """Replaces an ordered dictionary, which pickles its attributes too (a state dict has metadata)."""

    def __setstate__(self, state: Any) -> None:
        """Drop attributes."""


class _Builder:
    """A function that a pickle may call; it has no attributes that a pickle could set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a tensor builder has no attributes to set")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a tensor builder has no state to set")


class InertUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every global but those of tensor storage becomes inert."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(_record(archive, f"{root}data.pkl", MOST_PICKLE_BYTES)), encoding="utf-8")
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a global without importing it."""
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _Builder(_tensor)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _Builder(_parameter)
        if (module, name) == ("collections", "OrderedDict"):
            return InertDict
        return type("Inert", (Inert,), {})

    def persistent_load(self, identity: Any) -> Tensor:
        """Return a storage of the archive as a flat tensor; nothing else is outside the pickle."""
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(num_elements)):
                return self._storage(dtype, key, num_elements)
        raise CheckpointError("it refers to something outside the file that is not a tensor storage")

    def _storage(self, dtype: torch.dtype, key: str, num_elements: int) -> Tensor:
        if key not in self._storages:
            num_bytes = num_elements * dtype.itemsize
            data = _record(self._archive, f"{self._root}data/{key}", num_bytes)
            if num_elements < 0 or len(data) < num_bytes:
                raise CheckpointError(f"storage {key} holds {len(data)} bytes, {num_bytes} are needed")
            self._storages[key] = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(dtype)
        return self._storages[key]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor) or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
        raise CheckpointError("a tensor is described wrongly")
    if prod(size) > storage.numel():
        raise CheckpointError(f"a tensor of {prod(size)} elements lies in a storage of {storage.numel()}")
    return storage.as_strided(size, stride, offset)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise CheckpointError("a parameter is not a tensor")
    return data


def _record(archive: zipfile.ZipFile, name: str, most_bytes: int) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise CheckpointError(f"record {name} is missing") from None
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"record {name} is compressed, which torch.save never does")
    if info.file_size > max(most_bytes, 0):
        raise CheckpointError(f"record {name} has {info.file_size} bytes, more than the {most_bytes} it may have")
    return archive.read(info)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a ``.pt`` or ``.safetensors`` file; nothing in the file is imported or called.

    Where a file holds a training state (``model``, ``ema``), the averaged weights are taken if there are any.

    Args:
        path: A file written by ``torch.save`` in its zip format, or safetensors.

    Returns:
        Name -> tensor; half precision becomes float32.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or holds no weights.
    """
    path = Path(path)
    try:
        is_safetensors = path.suffix == ".safetensors"
        weights = _read_safetensors(path) if is_safetensors else dict(_weights_in(_read_pickle(path)))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; nothing in it was run") from None
    if not weights:
        raise CheckpointError(f"{path}: it holds no weights: no 'model', 'ema' or state dict with tensors was found")
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    if num_bytes > MOST_SHARING * path.stat().st_size:
        raise CheckpointError(f"{path}: its {num_bytes} bytes of weights do not fit into the file")
    return {name: _full_precision(tensor) for name, tensor in weights.items()}


def _full_precision(tensor: Tensor) -> Tensor:
    """Return a copy of its own, in float32 where the file saved room."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.clone()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(path)
        return weights
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"not readable as safetensors: {error}") from None


def _read_pickle(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                raise CheckpointError("a zip archive, but not one that torch.save wrote (no data.pkl)")
            return InertUnpickler(archive, names[0].removesuffix("data.pkl")).load()
    except CheckpointError:
        raise
    except zipfile.BadZipFile:
        raise CheckpointError(
            "not a zip archive; files older than torch 1.6 must be written again with a newer torch by their owner"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
        RuntimeError,
        MemoryError,
        OverflowError,
        RecursionError,
        NotImplementedError,
        ImportError,
    ) as error:
        raise CheckpointError(f"its pickle is damaged or hostile ({type(error).__name__}: {error})") from None


def _weights_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Find the weights: in a module tree, a state dict, or a training state that holds one of them."""
    if isinstance(content, Inert):
        yield from _module_weights(content, "", 0)
    elif isinstance(content, dict):
        for key in WEIGHT_KEYS:
            if isinstance(content.get(key), dict | Inert):
                yield from _weights_in(content[key])
                return
        for name, value in content.items():
            if isinstance(name, str) and isinstance(value, Tensor):
                yield name, value


def _module_weights(module: Inert, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Walk a pickled ``torch.nn.Module``: its parameters, buffers and modules are entries of its state."""
    if depth > MOST_DEPTH:
        raise CheckpointError(f"modules are nested more than {MOST_DEPTH} deep")
    for kind in ("_parameters", "_buffers"):
        tensors = module.state.get(kind)
        for name, value in tensors.items() if isinstance(tensors, dict) else ():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    modules = module.state.get("_modules")
    for name, child in modules.items() if isinstance(modules, dict) else ():
        if isinstance(child, Inert):
            yield from _module_weights(child, f"{prefix}{name}.", depth + 1)
