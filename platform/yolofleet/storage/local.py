"""Objects as files below a folder: written under a temporary name, synced to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Callable
from copy import copy
from io import BufferedReader
from pathlib import Path
from typing import Literal

from yolofleet.storage.objects import (
    TEMPORARY_PREFIX,
    ObjectInfo,
    ObjectNotFoundError,
    Result,
    Storage,
    StorageError,
    check_key,
    check_length,
)

EntryKind = Literal["file", "folder", "other"]


class FileStorage(Storage):
    """Objects as files below a folder.

    Args:
        root: The folder; it may be a link, or lie below links.
        boundary: What links below it lead out of, is neither read nor written; None: it is read, but written only
            inside of the root.
    """

    def __init__(self, root: Path, boundary: Path | None = None) -> None:
        super().__init__()
        self.root = root
        self.url = str(root)
        self._boundary = boundary

    def confined(self) -> Storage:
        confined = copy(self)
        confined._boundary = self._boundary or self.root
        return confined

    def _path(self, key: str) -> Path:
        """Return the path of a file that is read."""
        path = self.root / check_key(key)
        if self._boundary is not None:
            self._check_inside(path)
        return path

    def _target(self, key: str) -> Path:
        """Return the path of a file that is written or removed; a link of that name is itself replaced or removed."""
        path = self.root / check_key(key)
        self._check_inside(path.parent)
        return path

    def _check_inside(self, path: Path) -> None:
        boundary = self._boundary or self.root
        real = os.path.realpath(path)  # Path.resolve would raise at a link to itself
        if not Path(real).is_relative_to(os.path.realpath(boundary)):
            raise StorageError(
                f"{path}: a link leads out of {boundary}, to {real}; move that here, or make {boundary} itself the link"
            )

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def get(self, key: str) -> bytes:
        return self.get_from(key, 0)

    def get_from(self, key: str, start: int, most_bytes: int | None = None) -> bytes:
        def read(path: Path) -> bytes:
            with _open(path) as source:
                source.seek(start)
                return source.read(most_bytes)

        return _guard_file(self._path(key), read)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        def read(path: Path) -> bytes:
            with _open(path) as source:
                source.seek(start)
                return source.read(length)

        data = _guard_file(self._path(key), read)
        return check_length(data, length, f"{self.url}/{key}", start)

    def open_stream(self, key: str) -> BufferedReader:
        return _guard_file(self._path(key), _open)

    def put(self, key: str, data: bytes | bytearray | Path) -> None:
        _guard_file(self._target(key), lambda path: self._write(path, data, exclusive=False))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return _guard_file(self._target(key), lambda path: self._write(path, data, exclusive=True))

    def _write(self, target: Path, data: bytes | bytearray | Path, *, exclusive: bool) -> bool:
        _make_folder(target.parent)
        if target.is_dir():
            raise StorageError(f"{target}: is a folder, so no file can be written there; choose another path")
        temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as sink:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        while block := source.read(1 << 20):
                            sink.write(block)
                else:
                    sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            if exclusive:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
            else:
                temporary.replace(target)
            _sync_folder(target.parent)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        entries = []
        folders = [prefix.rpartition("/")[0]]  # a list of its own: os.walk of Python 3.11 recurses, folders nest deeply
        while folders:
            folder = folders.pop()
            if self._boundary is not None:
                self._check_inside(self.root / folder)
            try:
                with os.scandir(self.root / folder) as found:
                    inside = [*found]
            except OSError as error:
                self._tell_unreadable(folder, error)
                continue
            for entry in inside:
                key = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    kind = self._kind(key, entry)
                    if kind == "folder":
                        folders.append(key)
                    elif kind == "file" and key.startswith(prefix) and not entry.name.startswith(TEMPORARY_PREFIX):
                        found_file = entry.stat()
                        entries.append(ObjectInfo(key, found_file.st_size, found_file.st_mtime))
                except OSError as error:
                    self._tell_unreadable(key, error)
        return sorted(entries, key=lambda entry: entry.key)

    def _kind(self, key: str, entry: os.DirEntry[str]) -> EntryKind:
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "file" if stat.S_ISREG(entry.stat().st_mode) else "other"  # reading a pipe or a device might never end

    def _tell_unreadable(self, key: str, error: OSError) -> None:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # removed meanwhile, or a link to nowhere
            raise StorageError(f"{self.root / key}: cannot be listed: {error.strerror}") from error

    def size_bytes(self, key: str) -> int:
        path = self._path(key)
        if path.is_dir():
            raise ObjectNotFoundError(f"{path}: is a folder, not a file")
        return _guard_file(path, lambda existing: existing.stat().st_size)

    def delete(self, key: str) -> None:
        path = self._target(key)
        _guard_file(path, lambda existing: existing.unlink(missing_ok=True))
        for folder in path.parents:  # a folder without files is nothing in an object store
            if folder == self.root or not folder.is_relative_to(self.root):
                break
            try:
                folder.rmdir()
            except OSError:
                break

    def child(self, prefix: str) -> Storage:
        return FileStorage(self.root / check_key(prefix.strip("/")), self._boundary)


def _check_folder(folder: Path) -> None:
    """Raise StorageError where the folder or one above it is a file."""
    if folder.is_dir():
        return
    above = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if above.exists() and not above.is_dir():
        raise StorageError(f"{folder}: {above} is a file, not a folder; choose another folder, or move the file away")


def _make_folder(folder: Path) -> None:
    _check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError) as error:  # /proc, say, or a broken link has this name
        raise StorageError(
            f"{folder}: cannot be made ({error.strerror}); choose a folder that can be written"
        ) from error


def _open(path: Path) -> BufferedReader:
    """Open a regular file for reading; a pipe or a device is refused, because reading it might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise IsADirectoryError(path) if stat.S_ISDIR(mode) else FileNotFoundError(path)
    return os.fdopen(descriptor, "rb")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _guard_file(path: Path, action: Callable[[Path], Result]) -> Result:
    try:
        return action(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ObjectNotFoundError(f"{path}: no such file") from error
    except PermissionError as error:
        raise StorageError(f"{path}: permission denied; check the owner and mode of the file and its folder") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "the disk is full; free some space" if full else (error.strerror or str(error))
        raise StorageError(f"{path}: {cure}", transient=full) from error
