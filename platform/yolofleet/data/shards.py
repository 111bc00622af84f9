"""Writing one shard: samples in, tar bytes and index out. Equal samples give equal bytes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from yolofleet.data.index import ROW, ShardIndex
from yolofleet.data.manifest import ShardEntry
from yolofleet.data.records import ImageRecord
from yolofleet.data.tar_format import BLOCK_BYTES, END_OF_ARCHIVE, padding, tar_header
from yolofleet.storage import Storage

LONGEST_STEM = 40


def sample_key(position: int, file_name: str) -> str:
    """Return the key of the sample at a position of its source.

    The number makes it unique, the rest of the file's name lets people recognise it. It holds no dot (WebDataset
    readers end a key at the first one), no folder and nothing but ASCII letters, digits, ``-`` and ``_``.
    """
    stem = file_name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:LONGEST_STEM]
    return f"{position:09d}-{readable}" if readable else f"{position:09d}"


class ShardWriter:
    """Collects the samples of one shard in a local file. A context manager: the file is closed on leaving."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._offset = 0
        self._rows: list[tuple[int, ...]] = []
        self._keys: list[str] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, key: str, extension: str, image: bytes, record: ImageRecord) -> None:
        """Append one sample: ``KEY.EXTENSION`` and ``KEY.json``."""
        annotation = record.to_json()
        image_offset = self._member(f"{key}.{extension}", image)
        json_offset = self._member(f"{key}.json", annotation)
        sizes = (len(image), len(annotation), record.width, record.height, len(record.boxes))
        self._rows.append((image_offset, json_offset, *sizes))
        self._keys.append(key)

    def finish(self, storage: Storage, name: str) -> ShardEntry:
        """End the archive, put it and its index into storage, and return its entry for the manifest."""
        self._write(END_OF_ARCHIVE)
        self._file.close()
        index = ShardIndex(np.array(self._rows, dtype=ROW), self._keys).to_bytes()
        entry = ShardEntry(
            name, self._offset, self._digest.hexdigest(), len(self._keys), hashlib.sha256(index).hexdigest()
        )
        storage.put(entry.tar_key, self._path)
        storage.put(entry.index_key, index)
        return entry

    def _member(self, name: str, data: bytes) -> int:
        self._write(tar_header(name, len(data)))
        offset = self._offset
        self._write(data + padding(len(data)))
        return offset

    def _write(self, data: bytes) -> None:
        assert len(data) % BLOCK_BYTES == 0
        self._file.write(data)
        self._digest.update(data)
        self._offset += len(data)
