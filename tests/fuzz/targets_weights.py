"""Fuzz targets of everything that holds weights, and of the files of detections: checkpoints, packages, results."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.evaluation.detector_package import read_package
from yolofleet.evaluation.ground_truth import GroundTruth, read_ground_truth
from yolofleet.evaluation.result_file import read_results
from yolofleet.models.checkpoint_reader import read_checkpoint
from yolofleet.storage import open_storage
from yolofleet.training.checkpoint.store import CheckpointStore

SEEDS = Path(__file__).parent / "seeds"
DELETED = object()
VALUES: list[Any] = [
    DELETED, None, True, 0, 1, -1, 2, 3, 255, 65536, 2**31, 2**62, 2**63, 2**200, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), "", "a", "conv", "elan", "csp", "dark", "pools", "concat", "up_concat", "image", "p", "\x1b[2J",
    "\ud800", "../x", [], [[]], {}, {"a": {}}, [1, 2, 3, 4], ["p", "p"], [1] * 300, [0, 4], "F64", "silu",
    {"block": "conv", "out": 65536}, {"block": "elan", "hidden": 8, "stack": 256, "out": 8},
]  # fmt: skip
"""What values are replaced by."""


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


def fuzz_package(data: bytes) -> None:
    """A card and a header, one JSON document a line, or good ones spoiled; the digest of the weights is right."""
    card, _, header = data.partition(b"\n")
    if not header.startswith(b"{"):
        card, _, header = spoil(_good_package(), data).partition(b"\n")
    weights = len(header).to_bytes(8, "little") + header + bytes(_data_length(header))
    with suppress(ValueError, RecursionError):
        document = json.loads(card)
        if isinstance(document, dict):
            document["weights_sha256"] = hashlib.sha256(weights).hexdigest()
            card = json.dumps(document).encode()
    _write("package/model.safetensors", weights)
    _write("package/detector.json", card)
    with suppress(UserError):
        read_package(_folder() / "package")


@cache
def _good_package() -> bytes:
    return (SEEDS / "package" / "good").read_bytes()


def _data_length(header: bytes) -> int:
    """Return how many bytes of weights a header speaks of, at most a megabyte."""
    ends = [int(end) for end in re.findall(rb"(\d{1,7})\]\}", header)]
    return min(max(ends, default=0), 2**20)


def spoil(lines: bytes, data: bytes) -> bytes:
    """Return JSON documents, one a line, with values replaced, added or removed as pairs of bytes say."""
    documents = [json.loads(line) for line in lines.splitlines()]
    for where, what in zip(data[:20:2], data[1:20:2], strict=False):
        places = list(_places(documents))
        if not places:
            break
        container, key = places[(where * 7) % len(places)]
        value = VALUES[what % len(VALUES)]
        if value is DELETED:
            del container[key]
        else:
            container[key] = deepcopy(value)
    return b"\n".join(json.dumps(document).encode() for document in documents)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def fuzz_committed_checkpoint(data: bytes) -> None:
    """The list of files of a run's checkpoint, beside files that are there."""
    _write("step-3/state.json", b"{}")
    _write("step-3/COMMITTED", data)
    store = CheckpointStore(open_storage(_folder()), on_event=lambda kind, **fields: None)
    with suppress(UserError):
        store.newest()


def fuzz_results_json(data: bytes) -> None:
    """A file of detections, or a good one that is spoiled."""
    if data[:1] >= b"\x80" and data[:2] != b"\xef\xbb":
        data = spoil((SEEDS / "results_json" / "good").read_bytes(), data)
    with suppress(UserError):
        detections, _ = read_results(_write("results.json", data), _truth())
        detections.records()


@cache
def _truth() -> GroundTruth:
    return read_ground_truth(SEEDS / "ground_truth" / "good")


def fuzz_ground_truth(data: bytes) -> None:
    """A file of annotations that detections are evaluated with, or a good one that is spoiled."""
    if data[:1] >= b"\x80" and data[:2] != b"\xef\xbb":
        data = spoil((SEEDS / "ground_truth" / "good").read_bytes(), data)
    with suppress(UserError):
        read_ground_truth(_write("instances.json", data))
