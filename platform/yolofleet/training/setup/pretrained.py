"""Trained weights that a run starts from: of another run, of a detector package or of a published file.

They are read once, before the first start, and those that fit the model are kept in the run directory: every worker on
every node reads them there, and no later start needs the source again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import TRAINING_FORM
from yolofleet.core.local_files import file_sha256
from yolofleet.core.registered_names import MODELS_PREFIX
from yolofleet.core.text import and_more, plural, split_url
from yolofleet.data.anchors import Anchors
from yolofleet.data.class_names import coco_classes
from yolofleet.data.manifest import Manifest
from yolofleet.evaluation.detector_package import read_stored_card
from yolofleet.models import build_model
from yolofleet.models.checkpoint_reader import Checkpoint, open_checkpoint
from yolofleet.models.network import BOX_AND_OBJECTNESS, Network
from yolofleet.models.official_names import holds_own_names
from yolofleet.models.tensor_file import parse_tensors
from yolofleet.models.weight_fit import LAST_LAYER, in_our_names, layout_note
from yolofleet.models.weights import UNKNOWN, LoadedWeights, match_classes, take_known_rows, transfer_state_dict
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelTable
from yolofleet.specs.yaml_document import parse_yaml
from yolofleet.storage import Storage, open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.checkpoint_evaluations import best_checkpoint

INITIAL_KEY = "initial/model.safetensors"
MOST_NAMED = 8
WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".safetensors")
CLASS_ROWS = "class_rows"
"""For each class of the model, the class of the stored last layer whose rows it takes; absent where it takes all."""

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
    class_names: tuple[str, ...] | None = None
    """Names of their classes by index, where they are known."""

    def known_classes(self, model: Network, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return which of their classes a model's are, by name; None where they are the same, or have no names."""
        ours = in_our_names(model, self.state).get("head.lead.0.weight")
        if ours is None or ours.dim() == 0:
            return None
        num_classes = ours.shape[0] // model.table.num_anchors - BOX_AND_OBJECTNESS
        known = self.class_names
        if known is None and not holds_own_names(self.state) and num_classes == len(coco_classes()):
            known = tuple(name for _, name in coco_classes())  # published weights that name no classes are COCO's
        if known is None or len(known) != num_classes:
            return None
        found = match_classes(names, known)
        return None if found == tuple(range(num_classes)) else found

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

    table: ModelTable
    """The model."""
    weights: TrainedWeights
    loaded: LoadedWeights
    """Which of them were loaded."""
    tensors: dict[str, Tensor] = field(repr=False)
    """The tensors taken over, by our names."""
    anchors: Anchors | None
    """Their anchors, where they have as many as the model."""
    class_names: tuple[str, ...]
    """Names of the model's classes."""
    known_classes: tuple[int, ...] | None = None
    """For each of the model's classes the one of the weights; None where the last layer is not taken by names."""

    def facts(self) -> dict[str, Any]:
        """Return the facts to record: the source, its digest, its parent, and the numbers of tensors."""
        known = {"source": self.weights.source, "sha256": self.weights.sha256, "parent": self.weights.parent}
        by_name = {} if self.known_classes is None else {"classes_known": len(self._known_names())}
        return {name: value for name, value in known.items() if value is not None} | {
            "tensors_taken": len(self.tensors),
            "tensors_fresh": len(self.fresh),
            **by_name,
        }

    def _known_names(self) -> list[str]:
        pairs = zip(self.class_names, self.known_classes or (), strict=False)
        return [name for name, index in pairs if index != UNKNOWN]

    @property
    def fresh(self) -> list[str]:
        """Names of the tensors that keep their random values."""
        return [name for name in self.loaded.kept if not name.endswith("num_batches_tracked")]

    def to_bytes(self) -> bytes:
        """Return the tensors as the run directory keeps them, and which rows of the last layer are meant."""
        rows = {CLASS_ROWS: torch.tensor(self.known_classes)} if self.loaded.known_rows else {}
        return bytes(safetensors.torch.save({**self.tensors, **rows}))

    def sentences(self) -> list[str]:
        """Return in a line each what was taken over, which classes are known, and what to look at."""
        text = f"initial weights: {plural(len(self.tensors), 'tensor')} of {self.weights.source}"
        if self.fresh:
            parts = sorted({".".join(name.split(".")[:2]) for name in self.fresh})
            text = f"{text}; {plural(len(self.fresh), 'starts', 'start')} fresh ({', '.join(parts)})"
        lines = [text]
        if self.known_classes is not None:
            known = self._known_names()
            shown = and_more(known, MOST_NAMED) or "none"
            classes = plural(len(self.class_names), "class")
            lines.append(f"the last layer is kept for {len(known)} of {classes}, by name: {shown}")
        remark = layout_note(self.table, self.weights.state)
        return lines if remark is None else [*lines, remark]


def take_over(table: ModelTable, class_names: Sequence[str], weights: TrainedWeights) -> Transfer:
    """Return what a model of these classes can take over; of the last layers the rows of classes that both know.

    Raises:
        UserError: The weights are another model's.
    """
    model = build_model(table, len(class_names))
    try:
        known_classes = weights.known_classes(model, class_names)
        loaded = transfer_state_dict(model, weights.state, known_classes)
    except UserError as error:
        raise UserError(f"initial_weights {weights.source}: {error}") from error
    state = model.state_dict()
    names = [name for name in loaded.loaded if name != "anchors" and not name.endswith("num_batches_tracked")]
    tensors = {name: state[name].contiguous() for name in names}
    tensors |= {name: tensor.contiguous() for name, tensor in loaded.known_rows.items()}
    found = weights.anchors(model.strides)
    fits = found is not None and found.shape == model.anchors.shape and bool((found > 0).all())
    anchors = tuple(tuple((w, h) for w, h in level) for level in found.tolist()) if found is not None and fits else None
    return Transfer(table, weights, loaded, tensors, anchors, tuple(class_names), known_classes)


@torch.no_grad()
def load_initial(storage: Storage, model: Network) -> None:
    """Load the tensors that the run directory keeps into a fresh model; the others keep their random values."""
    own, tensors = model.state_dict(), parse_tensors(storage.get(INITIAL_KEY))
    rows = tensors.pop(CLASS_ROWS, None)
    for name, tensor in tensors.items():
        if rows is not None and name.startswith(LAST_LAYER):
            take_known_rows(own[name], tensor, rows.tolist(), model.table.num_anchors)
        else:
            own[name].copy_(tensor)


def read_trained(source: str, locate: Locate | None = None, sha256: str | None = None) -> TrainedWeights:
    """Read trained weights.

    Args:
        source: A run directory, a detector package, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, or a ``.pt``,
            ``.pth``, ``.ckpt`` or ``.safetensors`` file: a path, or an ``s3://`` or ``https://`` URL.
        locate: Finds registered versions; None where there is no registry.
        sha256: The file's SHA-256; needed for an ``https://`` URL.

    Raises:
        UserError: There are no weights that can be trained further, or they are others; says what is accepted.
    """
    digest = None if sha256 is None else sha256.lower()
    is_file = split_url(source).path.lower().endswith(WEIGHT_FILES)
    if source.lower().startswith("https://"):
        return _weights(open_checkpoint(fetch_weights(source, digest or "")), source)
    if digest is not None and not is_file:
        raise UserError(
            f"initial_weights {source}: initial_weights_sha256 is the digest of a single file "
            f"({', '.join(WEIGHT_FILES)}); leave it out"
        )
    if source.startswith(MODELS_PREFIX):
        if locate is None:
            raise UserError(
                f"initial_weights {source}: only 'yolofleet train' reads the registry; start the run with it once "
                f"(its run directory keeps the weights), or name a run directory or a file"
            )
        try:
            folder, version = locate(source)
        except UserError as error:
            raise UserError(f"initial_weights {source}: {error}") from error
        return replace(_read_folder(open_storage(folder), source), parent=version)
    if "://" not in source and Path(source).suffix.lower() in WEIGHT_FILES:
        if not Path(source).is_file():
            raise UserError(f"initial_weights {source}: there is no such file")
        return _weights(_open_verified(Path(source), source, digest), source)
    if source.lower().endswith(WEIGHT_FILES):
        folder_url, _, name = source.rpartition("/")
        return _weights(_download(open_storage(folder_url), name, digest), source)
    return _read_folder(open_storage(source), source)


def fetch_weights(url: str, sha256: str) -> Path:
    """Return a local copy of the weights behind an ``https://`` URL, fetched once.

    Raises:
        UserError: They cannot be fetched, or are others than the digest says.
    """
    from yolofleet.core.terminal import note
    from yolofleet.storage.https_file import check_url, fetch_file

    check_url(url)
    suffix = Path(split_url(url).path.lower()).suffix
    if suffix not in WEIGHT_FILES:
        raise UserError(f"{url}: is not a weights file; accepted are {', '.join(WEIGHT_FILES)}")
    return fetch_file(url, sha256.lower(), suffix, note)


def _read_folder(storage: Storage, source: str) -> TrainedWeights:
    """Read a run directory's best average, or the training form of a detector package."""
    run = RunDirectory(storage)
    if (checkpoint := best_checkpoint(run, CheckpointStore(storage.child("checkpoints")))) is not None:
        average = Checkpoint(checkpoint.tensors["average"], _classes_of_run(run))
        return _weights(average, source, parent=f"{storage.url} step {checkpoint.step}")
    for package in (storage, storage.child("model")):
        card = read_stored_card(package)
        names = _class_names(card)
        if package.exists(TRAINING_FORM):
            return _weights(Checkpoint(_download(package, TRAINING_FORM).weights, names), source)
        if card is not None:
            if card.get("deployed") is False:
                return _weights(Checkpoint(_download(package, "model.safetensors").weights, names), source)
            raise UserError(
                f"initial_weights {source}: the detector package holds the deployed form only, whose folded layers "
                f"cannot be trained (no {TRAINING_FORM}); name the run directory that it was made in"
            )
    raise UserError(
        f"initial_weights {source}: holds neither checkpoints nor a detector package; accepted are a run directory, a "
        f"detector package, a registered version (NAME@ALIAS, NAME/VERSION), and {', '.join(WEIGHT_FILES)} files, also "
        f"at https://"
    )


def _class_names(card: dict[str, Any] | None) -> tuple[str, ...] | None:
    try:
        return None if card is None else tuple(str(entry["name"]) for entry in card["classes"])
    except (KeyError, TypeError):
        return None


def _classes_of_run(run: RunDirectory) -> tuple[str, ...] | None:
    """Return the names of a run's classes: of the detector that it made, else of its data; None where both are gone."""
    with suppress(UserError):  # a damaged card
        if (names := _class_names(read_stored_card(run.storage.child("model")))) is not None:
            return names
    with suppress(UserError):
        job = JobSpec.parse(parse_yaml(run.job_text() or "", source=run.url), source="job.yaml of the run")
        return tuple(entry.name for entry in Manifest.read(open_storage(job.data.train)).classes)
    return None


def _download(storage: Storage, key: str, sha256: str | None = None) -> Checkpoint:
    if (local := storage.local_path(key)) is not None:
        return _open_verified(local, f"{storage.url}/{key}", sha256)
    with tempfile.TemporaryDirectory(prefix="yolofleet-initial-") as folder:
        path = Path(folder) / Path(key).name
        storage.download(key, path)
        return _open_verified(path, f"{storage.url}/{key}", sha256)


def _open_verified(path: Path, source: str, sha256: str | None) -> Checkpoint:
    if sha256 is not None and (found := file_sha256(path)) != sha256:
        raise UserError(f"initial_weights {source}: its SHA-256 is {found}, not {sha256}; it was not read")
    return open_checkpoint(path)


def _weights(read: Checkpoint, source: str, parent: str | None = None) -> TrainedWeights:
    digest = hashlib.sha256()
    for name, tensor in sorted(read.weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return TrainedWeights(read.weights, source, digest.hexdigest(), parent, read.class_names)
