"""Trained weights that a run starts from: of another run, of a detector package or of a published file.

They are read once, before the first start, and those that fit the model are kept in the run directory: every worker on
every node reads them there, and no later start needs the source again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import DETECTOR_CARD_NAME
from yolofleet.data.anchors import Anchors
from yolofleet.models import build_model
from yolofleet.models.network import Network
from yolofleet.models.tensor_file import parse_tensors
from yolofleet.models.weights import LoadedWeights, read_checkpoint, transfer_state_dict
from yolofleet.specs.model import ModelTable
from yolofleet.storage import Storage, open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.run_state import load_strictly
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.checkpoint_evaluations import best_checkpoint

if TYPE_CHECKING:
    from yolofleet.evaluation.detector_package import DetectorCard

INITIAL_KEY = "initial/model.safetensors"
TRAINING_FORM = "training.safetensors"
"""File of a detector package that holds its weights in the form that can be trained further."""
WEIGHT_FILES = (".pt", ".pth", ".safetensors")

Locate = Callable[[str], tuple[Path, str]]
"""Finds the folder of a registered detector package, and the version that the name stands for."""


@dataclass(frozen=True)
class TrainedWeights:
    """Weights of a trained model."""

    state: Mapping[str, Tensor]
    """Tensors by our names or published ones."""
    source: str
    """Where they were read from."""
    sha256: str
    """Digest of all tensors."""
    parent: str | None = None
    """The registered version or run that they come from, where it is known."""

    def anchors(self, strides: Sequence[int]) -> Tensor | None:
        """Return the anchors that they were trained with, (levels, anchors, 2) pixels; None where they hold none.

        Published files hold them in pixels (``anchor_grid``), in cells (``anchors``), or both.
        """
        for suffix, in_cells in (("anchor_grid", False), ("anchors", True)):
            for name, tensor in self.state.items():
                if name.rpartition(".")[2] == suffix and tensor.dim() > 1 and tensor.shape[0] == len(strides):
                    levels = tensor.double().reshape(len(strides), -1, 2)
                    in_pixels = not in_cells or name == "anchors"
                    return levels if in_pixels else levels * torch.tensor(strides).view(-1, 1, 1)
        return None


@dataclass(frozen=True)
class Transfer:
    """What a model takes over from trained weights."""

    weights: TrainedWeights
    loaded: LoadedWeights
    """Which of them were loaded."""
    tensors: dict[str, Tensor] = field(repr=False)
    """The tensors taken over, by our names."""
    anchors: Anchors | None
    """Their anchors, where they have as many as the model."""

    def facts(self) -> dict[str, Any]:
        """Return the facts to record: the source, its digest, its parent, and the numbers of tensors."""
        known = {"source": self.weights.source, "sha256": self.weights.sha256, "parent": self.weights.parent}
        return {name: value for name, value in known.items() if value is not None} | {
            "tensors_taken": len(self.tensors),
            "tensors_fresh": len(self.fresh),
        }

    @property
    def fresh(self) -> list[str]:
        """Names of the tensors that keep their random values."""
        return [name for name in self.loaded.kept if not name.endswith("num_batches_tracked")]

    def to_bytes(self) -> bytes:
        """Return the tensors as the run directory keeps them."""
        return bytes(safetensors.torch.save(self.tensors))

    def sentence(self) -> str:
        """Return in one line what was taken over."""
        text = f"initial weights: {len(self.tensors)} tensors of {self.weights.source}"
        if not self.fresh:
            return text
        parts = sorted({".".join(name.split(".")[:2]) for name in self.fresh})
        return f"{text}; {len(self.fresh)} start fresh ({', '.join(parts)})"


def take_over(table: ModelTable, num_classes: int, weights: TrainedWeights) -> Transfer:
    """Return what a model can take over; with another number of classes all but the last layers.

    Raises:
        UserError: The weights are another model's.
    """
    model = build_model(table, num_classes)
    try:
        loaded = transfer_state_dict(model, weights.state)
    except UserError as error:
        raise UserError(f"initial_weights {weights.source}: {error}") from error
    state = model.state_dict()
    names = [name for name in loaded.loaded if name != "anchors" and not name.endswith("num_batches_tracked")]
    tensors = {name: state[name].contiguous() for name in names}
    found = weights.anchors(model.strides)
    fits = found is not None and found.shape == model.anchors.shape and bool((found > 0).all())
    anchors = tuple(tuple((w, h) for w, h in level) for level in found.tolist()) if found is not None and fits else None
    return Transfer(weights, loaded, tensors, anchors)


@torch.no_grad()
def load_initial(storage: Storage, model: Network) -> None:
    """Load the tensors that the run directory keeps into a fresh model; the others keep their random values."""
    own = model.state_dict()
    for name, tensor in parse_tensors(storage.get(INITIAL_KEY)).items():
        own[name].copy_(tensor)


def save_training_form(folder: Path, model: Network) -> Path:
    """Store a model's weights in training form beside the deployed ones of a detector package."""
    path = folder / TRAINING_FORM
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path)
    return path


def load_training_form(folder: Path, card: DetectorCard) -> Network | None:
    """Return the training form that lies beside the deployed weights of a detector package; None without one.

    Raises:
        UserError: It cannot be read, or is not that of the package's model.
    """
    path = folder / TRAINING_FORM
    if not path.is_file():
        return None
    model = build_model(card.model, len(card.classes))
    state = read_checkpoint(path)
    load_strictly(model, {name: state[name] for name in state if not name.endswith("num_batches_tracked")})
    return model


def read_trained(source: str, locate: Locate | None = None) -> TrainedWeights:
    """Read trained weights.

    Args:
        source: A run directory, a detector package, ``models:/NAME@ALIAS``, or a ``.pt`` or ``.safetensors`` file.
        locate: Finds registered versions; None where there is no registry.

    Raises:
        UserError: There are no weights that can be trained further; says what is accepted.
    """
    if source.startswith("models:/"):
        if locate is None:
            raise UserError(
                f"initial_weights {source}: only 'yolofleet train' looks into the registry; start the run with it once "
                "(its run directory keeps the weights), or name a run directory or a file"
            )
        folder, version = locate(source)
        return replace(_read_folder(open_storage(folder), source), parent=version)
    if "://" not in source and Path(source).suffix.lower() in WEIGHT_FILES:
        if not Path(source).is_file():
            raise UserError(f"initial_weights {source}: there is no such file")
        return _weights(read_checkpoint(source), source)
    if source.lower().endswith(WEIGHT_FILES):
        folder_url, _, name = source.rpartition("/")
        return _weights(_download(open_storage(folder_url), name), source)
    return _read_folder(open_storage(source), source)


def _read_folder(storage: Storage, source: str) -> TrainedWeights:
    """Read a run directory's best average, or the training form of a detector package."""
    store = CheckpointStore(storage.child("checkpoints"))
    if (checkpoint := best_checkpoint(RunDirectory(storage), store)) is not None:
        return _weights(checkpoint.tensors["average"], source, parent=f"{storage.url} step {checkpoint.step}")
    for package in (storage, storage.child("model")):
        if package.exists(TRAINING_FORM):
            return _weights(_download(package, TRAINING_FORM), source)
        if package.exists(DETECTOR_CARD_NAME):
            if json.loads(package.get(DETECTOR_CARD_NAME)).get("deployed") is False:
                return _weights(_download(package, "model.safetensors"), source)
            raise UserError(
                f"initial_weights {source}: the detector package holds the deployed form only, whose folded layers "
                f"cannot be trained (no {TRAINING_FORM}); name the run directory that it was made in"
            )
    raise UserError(
        f"initial_weights {source}: holds neither checkpoints nor a detector package; accepted are a run directory, a "
        "detector package, models:/NAME@ALIAS, and .pt or .safetensors files"
    )


def _download(storage: Storage, key: str) -> dict[str, Tensor]:
    if (local := storage.local_path(key)) is not None:
        return read_checkpoint(local)
    with tempfile.TemporaryDirectory(prefix="yolofleet-initial-") as folder:
        path = Path(folder) / Path(key).name
        storage.download(key, path)
        return read_checkpoint(path)


def _weights(state: Mapping[str, Tensor], source: str, parent: str | None = None) -> TrainedWeights:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}\0".encode())
        digest.update(state[name].contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return TrainedWeights(state, source, digest.hexdigest(), parent)
