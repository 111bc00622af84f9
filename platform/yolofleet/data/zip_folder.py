"""A zip archive as a folder of labels and images: exports are read as they come, without unpacking.

Sizes are those of the archive's list, and never exceeded while a file is read; links and encrypted files are left out.
"""

from __future__ import annotations

import io
import stat
import threading
import zipfile
import zlib
from pathlib import Path
from typing import NoReturn

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.data.file_finder import LONGEST_NAME
from yolofleet.data.problems import ProblemLog
from yolofleet.data.source_folder import is_litter
from yolofleet.storage import ObjectInfo, ObjectNotFoundError, Storage, StorageError

MOST_ZIP_FILES = 5_000_000
MOST_RANGES_KEPT = 8
"""The ends of so many files are kept: to read one again, all before it would be unpacked again."""
_ENCRYPTED = 1
BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How files may be packed: `zipfile` unpacks those of other methods at once, whatever length is asked for."""


class ZipFolder(Storage):
    """The files in a zip archive of this machine, to be read only.

    Args:
        path: The archive.
        problems: Where files that are left out are counted.

    Raises:
        UserError: It is no zip archive, or a damaged one.
    """

    def __init__(self, path: Path, problems: ProblemLog) -> None:
        super().__init__()
        self.url = str(path)
        self._lock = threading.Lock()
        self._ranges: dict[tuple[str, int, int], bytes] = {}
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise UserError(f"{path}: no zip archive that can be read: {error}; unpack it to a folder") from None
        if (num_files := len(self._archive.infolist())) > MOST_ZIP_FILES:
            raise UserError(
                f"{path}: {plural(num_files, 'file')}, more than the {MOST_ZIP_FILES:,} that are read; unpack it"
            )
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._archive.infolist():
            name = entry.filename.replace("\\", "/")  # which some programs of Windows write, though zip has slashes
            key = "/".join(part for part in name.split("/") if part not in ("", "."))
            if name.endswith("/") or not key:
                continue
            if is_litter(key):
                problems.add("file_hidden", f"{path}: {key}")
            elif ".." in key.split("/") or len(key) > LONGEST_NAME or not _is_text(key):
                problems.add("file_name_unusable", f"{path}: {key!r}")
            elif entry.flag_bits & _ENCRYPTED or stat.S_ISLNK(entry.external_attr >> 16):
                problems.add("file_unreadable", f"{path}: {key}: encrypted, or a link")
            elif entry.compress_type not in BOUNDED_METHODS:
                how = f"zip's method {entry.compress_type}, and only deflate is read; unpack the archive"
                problems.add("file_unreadable", f"{path}: {key}: packed by {how}")
            else:
                if key in self._entries:
                    problems.add("file_name_repeated", f"{path}: {key}")
                self._entries[key] = entry

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Return the files whose keys start with a prefix, sorted by key."""
        return [
            ObjectInfo(key, self._entries[key].file_size) for key in sorted(self._entries) if key.startswith(prefix)
        ]

    def size_bytes(self, key: str) -> int:
        """Return a file's size."""
        return self._entry(key).file_size

    def get(self, key: str) -> bytes:
        """Return a whole file."""
        size_bytes = self._entry(key).file_size
        data = self._unpacked(key, 0, size_bytes + 1)
        if len(data) != size_bytes:
            raise ObjectNotFoundError(f"{self.url}: {key}: its size is not that of the archive's list")
        return data

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return bytes of a file; of it, no more is unpacked than what lies before their end."""
        if start == 0:
            return self._unpacked(key, 0, length)
        asked = (key, start, length)
        if asked not in self._ranges:
            if len(self._ranges) >= MOST_RANGES_KEPT:
                self._ranges.clear()
            self._ranges[asked] = self._unpacked(*asked)
        return self._ranges[asked]

    def open_stream(self, key: str) -> io.BufferedReader:
        """Open a file for reading."""
        return io.BufferedReader(io.BytesIO(self.get(key)))

    def put(self, key: str, data: bytes | bytearray | Path) -> NoReturn:
        """Refuse to write."""
        raise StorageError(f"{self.url}: a zip archive is only read; name a folder to write to")

    def put_if_absent(self, key: str, data: bytes) -> NoReturn:
        """Refuse to write."""
        self.put(key, data)

    def delete(self, key: str) -> NoReturn:
        """Refuse to write."""
        self.put(key, b"")

    def child(self, prefix: str) -> NoReturn:
        """Refuse: what is inside is found by its key."""
        self.put(prefix, b"")

    def _unpacked(self, key: str, start: int, length: int) -> bytes:
        entry = self._entry(key)
        try:
            with self._lock, self._archive.open(entry) as source:
                source.seek(start)
                return source.read(length)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise ObjectNotFoundError(f"{self.url}: {key}: damaged in the archive: {error}") from error

    def _entry(self, key: str) -> zipfile.ZipInfo:
        if key not in self._entries:
            raise ObjectNotFoundError(f"{self.url}: no file {key!r} in the archive")
        return self._entries[key]


def _is_text(key: str) -> bool:
    return key == key.encode(errors="replace").decode()
