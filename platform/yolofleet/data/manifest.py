"""The manifest of a dataset of shards, and the index of a shard.

The manifest names classes, counts and shards with their digests. It is written last, so a half-written dataset is not a
dataset. An index holds the offsets of each sample's image and annotation, and the facts that a plan needs. It is stored
beside its shard at about 60 bytes a sample, so a manifest stays small at any size. Layout of an index, little-endian:
8 bytes ``YFINDEX1``, the number of samples (u64), one row a sample (``ROW``), then the keys in UTF-8, one a line.

Both may come from strangers. Every number is checked against another one that is known (the bytes of the file, the
samples of the shard) before it is used, so none of them decides alone how much memory or disk is taken.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import MANIFEST_NAME
from yolofleet.core.text import plural
from yolofleet.data.records import MOST_WHOLE_NUMBER, ObjectClass
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
MOST_MANIFEST_BYTES = 1 << 28
MOST_SHARD_BYTES = 1 << 50
MOST_SAMPLES_OF_A_SHARD = 1_000_000
LEAST_SAMPLE_BYTES = 1024
"""The headers of an image and of its annotation in a tar file."""
MOST_GAP_BYTES = 1023
"""From the end of an image to its annotation: padding and a header."""
LONGEST_KEY_BYTES = 256
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    def from_bytes(data: bytes, entry: ShardEntry, name: str) -> ShardIndex:
        """Read the index of a shard.

        Raises:
            IndexFormatError: It is damaged, of a format that this version does not know, or does not fit the shard.
        """
        if data[: len(MAGIC)] != MAGIC:
            newer = data[:7] == MAGIC[:7]
            cure = "written by a newer yolofleet; update it" if newer else "no shard index; build the shards again"
            raise IndexFormatError(f"{name}: {cure} (it starts with {data[:8]!r})")
        count = int.from_bytes(data[len(MAGIC) : _HEADER_BYTES], "little")
        if count != entry.samples:
            found = plural(count, "sample")
            raise IndexFormatError(f"{name}: it holds {found}, not {entry.samples:,}; build the shards again")
        keys_start = _HEADER_BYTES + count * ROW.itemsize
        if len(data) < keys_start:
            found = plural(len(data), "byte")
            raise IndexFormatError(f"{name}: cut short: {found} of {keys_start:,}; build the shards again")
        rows = np.frombuffer(data, dtype=ROW, count=count, offset=_HEADER_BYTES)
        keys = data[keys_start:].decode(errors="replace").split("\n")
        if len(keys) != count or not "".join(keys).isprintable():
            raise IndexFormatError(f"{name}: no {plural(count, 'printable key')}; build the shards again")
        wrong = _wrong_rows(rows, entry)
        if wrong.any():
            row = int(np.argmax(wrong))
            parts = ", ".join(f"{part} {value}" for part, value in zip(ROW.names or (), rows[row], strict=True))
            parts += f"; the shard has {plural(entry.bytes, 'byte')}"
            problem = f"sample {row} cannot be where the index says ({parts})"
            raise IndexFormatError(f"{name}: {problem}; build the shards again")
        return ShardIndex(rows, keys)


def most_index_bytes(entry: ShardEntry) -> int:
    """Return how many bytes the index of a shard can have."""
    return _HEADER_BYTES + entry.samples * (ROW.itemsize + LONGEST_KEY_BYTES)


def _wrong_rows(rows: NDArray[Any], entry: ShardEntry) -> NDArray[np.bool_]:
    """Return which samples leave their shard, have their parts apart from each other, or have no size."""
    beyond = np.maximum(rows["image_offset"], rows["json_offset"]) > entry.bytes
    offsets = np.where(beyond, 0, [rows["image_offset"], rows["json_offset"]]).astype(np.int64)  # (2, samples)
    ends = offsets + np.array([rows["image_bytes"], rows["json_bytes"]])
    gaps = offsets.max(axis=0) - ends.min(axis=0)
    outside = beyond | (ends.max(axis=0) > entry.bytes)
    return np.asarray(outside | (gaps < 0) | (gaps > MOST_GAP_BYTES) | (rows["width"] < 1) | (rows["height"] < 1))


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

    @staticmethod
    def parse(document: Any) -> ShardEntry:
        """Read an entry as `document` writes it.

        Raises:
            ValueError: A value is not what it must be.
            KeyError: A value is missing.
        """
        size = whole_number(document, "bytes", LEAST_SAMPLE_BYTES, MOST_SHARD_BYTES)
        return ShardEntry(
            _text(document, "name", _SHARD_NAME),
            size,
            _text(document, "sha256", _SHA256),
            whole_number(document, "samples", 1, min(MOST_SAMPLES_OF_A_SHARD, size // LEAST_SAMPLE_BYTES)),
            _text(document, "index_sha256", _SHA256),
        )

    def document(self) -> dict[str, Any]:
        """Return the entry as the manifest holds it."""
        return {name: getattr(self, name) for name in self.__slots__}

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
        lines = [json.dumps(entry.document(), separators=(",", ":")) for entry in self.shards]
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
            data = storage.get_at_most(MANIFEST_NAME, MOST_MANIFEST_BYTES)
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
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ManifestError(f"{name}: no manifest of a dataset ({type(error).__name__}: {error})") from None
        if version != FORMAT:
            raise ManifestError(f"{name}: format {version!r}; this yolofleet reads format {FORMAT}: update yolofleet")
        try:
            return _manifest(document)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ManifestError(f"{name}: damaged manifest ({what}); build the dataset again") from None


def _manifest(document: dict[str, Any]) -> Manifest:
    """Return a manifest whose every part is what it must be, and fits the others."""
    num_classes = len(document["classes"])
    manifest = Manifest(
        classes=tuple(ObjectClass(whole_number(entry, "id"), _text(entry, "name")) for entry in document["classes"]),
        class_counts=tuple(whole_number(document["class_counts"], index) for index in range(num_classes)),
        num_samples=whole_number(document, "num_samples", 1),
        num_empty=whole_number(document, "num_empty"),
        num_boxes=whole_number(document, "num_boxes"),
        num_crowds=whole_number(document, "num_crowds"),
        shards=tuple(ShardEntry.parse(entry) for entry in document["shards"]),
        source_digest=_text(document, "source_digest"),
        problems=_problems(document["problems"]),
    )
    if not manifest.classes or len({entry.id for entry in manifest.classes}) != num_classes:
        raise ValueError(f"{num_classes} classes must be at least one, each with its own id")
    if len(document["class_counts"]) != num_classes or sum(manifest.class_counts) != manifest.num_boxes:
        raise ValueError(f"class_counts must be one for each class, and {manifest.num_boxes:,} together (num_boxes)")
    held = sum(entry.samples for entry in manifest.shards)
    if held != manifest.num_samples or manifest.num_empty > held:
        raise ValueError(f"num_samples {manifest.num_samples:,}, but the shards hold {held:,}")
    for column in ("name", "sha256"):
        seen: set[str] = set()
        for value in (getattr(entry, column) for entry in manifest.shards):
            if value in seen:
                raise ValueError(f"two shards have {column} {value}")
            seen.add(value)
    return manifest


def _problems(document: Any) -> dict[str, Any]:
    """Return problems by kind, each with facts that are numbers, texts or lists of texts."""
    for kind, facts in document.items():
        for value in facts.values():
            entries = value if isinstance(value, list) else [value]
            if not all(isinstance(entry, int | str) for entry in entries):
                raise ValueError(f"problems: {kind} holds {value!r:.60}")
    return dict(document)


def whole_number(document: Any, key: Any, least: int = 0, most: int = MOST_WHOLE_NUMBER) -> int:
    """Return the whole number at a key of a JSON object or list.

    Raises:
        ValueError: It is none, or not within the bounds.
    """
    value = document[key]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is {value!r:.60}, not a whole number within {least:,} and {most:,}")
    return value


def _text(document: dict[str, Any], key: str, pattern: re.Pattern[str] | None = None) -> str:
    value = document[key]
    if not isinstance(value, str) or (pattern is not None and not pattern.fullmatch(value)):
        raise ValueError(f"{key} is {value!r:.100}, not {'text' if pattern is None else pattern.pattern}")
    value.encode()  # JSON allows halves of surrogate pairs, UTF-8 does not
    return value
