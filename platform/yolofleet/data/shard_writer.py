"""Writing one shard: samples in, tar bytes and index out. Equal samples give equal bytes.

The tar members have plain ustar headers without times, owners or extensions. An image may be encoded anew on the way:
smaller files and faster decoding, at a chosen loss of quality.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from yolofleet.core.text import plural
from yolofleet.data.check import CheckedImage
from yolofleet.data.manifest import ROW, ShardEntry, ShardIndex
from yolofleet.data.records import ImageRecord
from yolofleet.storage import Storage

BLOCK_BYTES = 512
END_OF_ARCHIVE = b"\0" * (2 * BLOCK_BYTES)
LONGEST_NAME_BYTES = 100
LONGEST_STEM = 40


def tar_header(name: str, size_bytes: int) -> bytes:
    """Return the 512-byte ustar header of a regular file.

    Raises:
        ValueError: The name is not plain ASCII of at most 100 bytes, or the size does not fit.
    """
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= LONGEST_NAME_BYTES or not 0 <= size_bytes < 8**11:
        raise ValueError(f"no plain tar header for name {name!r} of {plural(size_bytes, 'byte')}")
    header = bytearray(BLOCK_BYTES)
    header[0 : len(encoded)] = encoded
    header[100:108] = b"0000644\0"  # mode
    header[108:116] = header[116:124] = b"0000000\0"  # owner and group
    header[124:136] = b"%011o\0" % size_bytes
    header[136:148] = b"00000000000\0"  # time: none, so that two builds are equal
    header[148:156] = b"        "  # the checksum counts as spaces while it is computed
    header[156:157] = b"0"  # a regular file
    header[257:265] = b"ustar\00000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def padding(size_bytes: int) -> bytes:
    """Return the zeros that fill a member up to whole blocks."""
    return b"\0" * (-size_bytes % BLOCK_BYTES)


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


def reencode(
    checked: CheckedImage, original: bytes, quality: int, longest_side: int | None
) -> tuple[bytes, str, ImageRecord]:
    """Encode an image as JPEG of a quality, scaled down to a longest side; keep the original where it is smaller.

    Returns:
        Bytes, extension, and the record scaled with the image.
    """
    height, width = checked.pixels.shape[:2]
    gain = 1.0 if longest_side is None else min(1.0, longest_side / max(width, height))
    new_width, new_height = max(1, round(width * gain)), max(1, round(height * gain))
    pixels = checked.pixels
    if (new_width, new_height) != (width, height):
        pixels = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_AREA)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB")
    if (new_width, new_height) == (width, height) and len(data) >= len(original):
        return original, checked.extension, checked.record
    return data, "jpg", replace(checked.record.scaled_to(new_width, new_height), upright=None)
