"""The manifest of a dataset of shards, and the index of a shard.

The manifest names classes, counts and shards with their digests. It is written last, so a half-written dataset is not a
dataset. An index holds the offsets of each sample's image and annotation, and the facts that a plan needs. It is stored
beside its shard at about 60 bytes a sample, so a manifest stays small at any size. Layout of an index, little-endian:
8 bytes ``YFINDEX1``, the number of samples (u64), one row a sample (``ROW``), then the keys in UTF-8, one a line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import MANIFEST_NAME
from yolofleet.data.records import ObjectClass
from yolofleet.storage import ObjectNotFoundError, Storage

FORMAT = 1
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
    """One row and one key for each sample of a shard, in the order of the shard."""

    rows: NDArray[Any]
    """Structured array of ``ROW``: byte offsets and sizes within the shard, the image's width and height in pixels, the
    number of its objects."""
    keys: Sequence[str]
    """Keys of the samples."""

    def __len__(self) -> int:
        return len(self.rows)

    def to_bytes(self) -> bytes:
        """Return the index as it is stored."""
        count = np.array([len(self.rows)], dtype="<u8").tobytes()
        return MAGIC + count + self.rows.astype(ROW).tobytes() + "\n".join(self.keys).encode()

    @staticmethod
    def from_bytes(data: bytes, name: str) -> ShardIndex:
        """Read an index.

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


class ManifestError(UserError):
    """There is no dataset, or its manifest cannot be used."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard: ``shards/NAME.tar`` and ``shards/NAME.index``."""

    name: str
    bytes: int
    sha256: str
    samples: int
    index_sha256: str

    @property
    def tar_key(self) -> str:
        """Key of the tar file below the dataset's root."""
        return f"shards/{self.name}.tar"

    @property
    def index_key(self) -> str:
        """Key of the index below the dataset's root."""
        return f"shards/{self.name}.index"


@dataclass(frozen=True)
class Manifest:
    """The content of a dataset."""

    classes: tuple[ObjectClass, ...]
    """Classes by index, with the category ids of the source."""
    class_counts: tuple[int, ...]
    """Boxes of each class, crowds left out."""
    num_samples: int
    """Images."""
    num_empty: int
    """Images without any box (crowds do not count as one)."""
    num_boxes: int
    """Boxes, crowds left out."""
    num_crowds: int
    """Crowd regions."""
    shards: tuple[ShardEntry, ...]
    source_digest: str
    """Digest of what the dataset was built from and how."""
    problems: dict[str, Any] = field(default_factory=dict)
    """What the build left out or repaired, by kind (see ``ProblemLog.as_document``)."""

    def __getstate__(self) -> dict[str, Any]:
        """Hand the shards to other processes as columns: a million objects take twice as long."""
        columns = [[getattr(entry, name) for entry in self.shards] for name in ShardEntry.__slots__]
        return self.__dict__ | {"shards": columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"shards": tuple(map(ShardEntry, *state["shards"]))})

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: one shard a line, keys in a fixed order."""
        head = {
            "format": FORMAT,
            "kind": "yolofleet-dataset",
            "classes": [{"id": entry.id, "name": entry.name} for entry in self.classes],
            "class_counts": list(self.class_counts),
            "num_samples": self.num_samples,
            "num_empty": self.num_empty,
            "num_boxes": self.num_boxes,
            "num_crowds": self.num_crowds,
            "source_digest": self.source_digest,
            "problems": self.problems,
        }
        lines = [json.dumps(_shard_document(entry), separators=(",", ":")) for entry in self.shards]
        text = json.dumps(head, indent=1).removesuffix("\n}")
        return (text + ',\n "shards": [\n' + ",\n".join(lines) + "\n]\n}\n").encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: it names the dataset's every byte, because it holds the digests of all shards."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @staticmethod
    def read(storage: Storage) -> Manifest:
        """Read the manifest of the dataset at a storage's root.

        Raises:
            ManifestError: There is none, it is damaged, or a newer version wrote it.
        """
        name = f"{storage.url}/{MANIFEST_NAME}"
        try:
            data = storage.get(MANIFEST_NAME)
        except ObjectNotFoundError:
            raise ManifestError(
                f"{storage.url}: no dataset here ({MANIFEST_NAME} is missing); build one with "
                f"'yolofleet data shard ANNOTATIONS IMAGES {storage.url}', or run the build again if it was interrupted"
            ) from None
        return Manifest.from_bytes(data, name)

    @staticmethod
    def from_bytes(data: bytes, name: str) -> Manifest:
        """Read a manifest from its bytes.

        Raises:
            ManifestError: It is damaged, or a newer version wrote it.
        """
        try:
            document = json.loads(data)
            version = document["format"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ManifestError(f"{name}: no manifest of a dataset ({type(error).__name__}: {error})") from None
        if version != FORMAT:
            raise ManifestError(f"{name}: format {version!r}; this yolofleet reads format {FORMAT}: update yolofleet")
        try:
            return Manifest(
                classes=tuple(ObjectClass(int(entry["id"]), str(entry["name"])) for entry in document["classes"]),
                class_counts=tuple(int(count) for count in document["class_counts"]),
                num_samples=int(document["num_samples"]),
                num_empty=int(document["num_empty"]),
                num_boxes=int(document["num_boxes"]),
                num_crowds=int(document["num_crowds"]),
                shards=tuple(_shard_entry(entry) for entry in document["shards"]),
                source_digest=str(document["source_digest"]),
                problems=dict(document["problems"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ManifestError(f"{name}: damaged manifest ({type(error).__name__}: {error})") from None


def _shard_document(entry: ShardEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "bytes": entry.bytes,
        "sha256": entry.sha256,
        "samples": entry.samples,
        "index_sha256": entry.index_sha256,
    }


def _shard_entry(document: dict[str, Any]) -> ShardEntry:
    return ShardEntry(
        str(document["name"]),
        int(document["bytes"]),
        str(document["sha256"]),
        int(document["samples"]),
        str(document["index_sha256"]),
    )
