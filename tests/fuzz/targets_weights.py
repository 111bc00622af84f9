"""Fuzz targets of everything that holds weights, and of the files of detections: checkpoints, packages, results."""

from __future__ import annotations

import hashlib
import json
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from yolofleet.core.errors import UserError
from yolofleet.evaluation.detections import Detections, read_ground_truth
from yolofleet.evaluation.detector_package import read_package
from yolofleet.models.checkpoint_reader import read_checkpoint
from yolofleet.storage import open_storage
from yolofleet.training.checkpoint.store import CheckpointStore


@cache
def _folder() -> Path:
    return Path(mkdtemp(prefix="yolofleet-fuzz-"))


def _write(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def fuzz_checkpoint(data: bytes) -> None:
    """A whole .pt file."""
    with suppress(UserError):
        read_checkpoint(_write("whole.pt", data))


def fuzz_pickle(data: bytes) -> None:
    """The pickle alone, inside a valid archive with one storage of 64 bytes."""
    path = _folder() / "pickle.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(64))
    with suppress(UserError):
        read_checkpoint(path)


def fuzz_safetensors(data: bytes) -> None:
    """A whole .safetensors file."""
    with suppress(UserError):
        read_checkpoint(_write("whole.safetensors", data))


def fuzz_detector_package(data: bytes) -> None:
    """A card and a header: two JSON documents, one a line; the digest of the weights is always right."""
    card, _, header = data.partition(b"\n")
    weights = len(header).to_bytes(8, "little") + header
    with suppress(UserError, ValueError, RecursionError):
        document = json.loads(header)
        weights += bytes(max(min(entry["data_offsets"][1], 2**20) for entry in document.values()))
    with suppress(ValueError, RecursionError):
        document = json.loads(card)
        if isinstance(document, dict):
            document["weights_sha256"] = hashlib.sha256(weights).hexdigest()
        card = json.dumps(document).encode()
    _write("package/model.safetensors", weights)
    _write("package/detector.json", card)
    with suppress(UserError):
        read_package(_folder() / "package")


def fuzz_committed_checkpoint(data: bytes) -> None:
    """The list of files of a run's checkpoint, beside files that are there."""
    _write("step-3/state.json", b"{}")
    _write("step-3/COMMITTED", data)
    store = CheckpointStore(open_storage(_folder()), on_event=lambda kind, **fields: None)
    with suppress(UserError):
        store.newest()


def fuzz_results(data: bytes) -> None:
    """A file of detections."""
    with suppress(UserError):
        Detections.read(_write("results.json", data)).records()


def fuzz_ground_truth(data: bytes) -> None:
    """A file of annotations that detections are evaluated with."""
    with suppress(UserError):
        read_ground_truth(_write("instances.json", data))
