"""Reading a foreign checkpoint without running anything in it.

A ``.pt`` file is a zip archive: a pickle that describes objects, and one record of bytes for each tensor storage. The
published files pickle whole module objects, so loading them the usual way imports and calls whatever they name. Here
the pickle is read as inert data, and the weights are collected from what stands in for the module tree.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolofleet.models.inert_pickle import CheckpointError, Inert, InertUnpickler

MOST_DEPTH = 200
MOST_SHARING = 2
WEIGHT_KEYS = ("ema", "model", "state_dict")


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
