"""A folder of labels or images that somebody else made: nothing outside it is read, and what is left out is counted.

A link in such a folder could name any file of this machine, a pipe is never at its end, and a name need not be text.
Links that stay inside the folder are read; those that lead out of it are read only where the user asked for it.
"""

from __future__ import annotations

import os
import zipfile
from functools import cached_property
from pathlib import Path

from yolofleet.data.problems import ProblemLog
from yolofleet.storage import ObjectInfo, ObjectNotFoundError, Storage, StorageError, open_storage
from yolofleet.storage.local import EntryKind, FileStorage

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif")
_LITTER = (
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "system volume information", "$recycle.bin"),
    *("lost+found", "@eadir", "#recycle"),
)
_LITTER_BEGINS = ("synophoto_thumb", "synophoto_film", "synovideo_")
"""Names that network storage gives to its small copies of images and videos."""


def is_image_name(key: str) -> bool:
    """Return whether a file's name ends as those of images do."""
    return key.lower().endswith(tuple(f".{extension}" for extension in IMAGE_EXTENSIONS))


def is_litter(key: str) -> bool:
    """Return whether a file is hidden, or left by a system or a notebook, or lies in such a folder."""
    parts = key.split("/")
    return any(
        (part[:1] == "." and part[1:2] not in ("", "."))
        or part.lower() in _LITTER
        or part.lower().startswith(_LITTER_BEGINS)
        for part in parts
    )


class SourceFolder(FileStorage):
    """Files below a folder.

    Args:
        root: The folder.
        problems: Where files that are left out are counted, once.
        follow_links: Read what links outside the folder lead to, files and folders.
    """

    def __init__(self, root: Path, problems: ProblemLog, *, follow_links: bool) -> None:
        super().__init__(root)
        self._problems = problems
        self._follow_links = follow_links
        self._inside = Path(os.path.realpath(root))  # Path.resolve would raise at a link to itself
        self._followed = {self._inside}

    def _path(self, key: str) -> Path:
        path = super()._path(key)
        if not self._follow_links and not Path(os.path.realpath(path)).is_relative_to(self._inside):
            raise ObjectNotFoundError(f"{path}: leads out of {self.root} through a link; --follow-links reads it")
        return path

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Return the files that can be used, sorted by key; found at the first call."""
        return [entry for entry in self._files if entry.key.startswith(prefix)]

    @cached_property
    def _files(self) -> tuple[ObjectInfo, ...]:
        return tuple(super().list())

    def _kind(self, key: str, entry: os.DirEntry[str]) -> EntryKind:
        if is_litter(entry.name):
            return self._leave_out("file_hidden", str(self.root / key))
        if "\\" in key or not _is_utf8(key):
            return self._leave_out("file_name_unusable", key)
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            is_outside = not target.is_relative_to(self._inside)
            if is_outside and not self._follow_links:
                return self._leave_out("link_outside", f"{self.root / key} -> {target}")
            if is_outside and entry.is_dir() and self._followed.isdisjoint({target, *target.parents}):
                self._followed.add(target)  # each folder once, or two links could multiply it without an end
                return "folder"
        kind = super()._kind(key, entry)
        if kind == "other" and not entry.is_dir():
            return self._leave_out("file_irregular", str(self.root / key))
        return kind

    def _tell_unreadable(self, key: str, error: OSError) -> None:
        if key:
            self._leave_out("file_unreadable", f"{self.root / key}: {error.strerror}")
        elif not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise StorageError(f"{self.root}: cannot be listed: {error.strerror}; check its owner and mode") from error

    def _leave_out(self, kind: str, example: str) -> EntryKind:
        self._problems.add(kind, example)
        return "other"


def open_source(url: str, problems: ProblemLog, *, follow_links: bool) -> Storage:
    """Open a folder of labels or images: a path, whose links and pipes are minded, a zip, or an object store."""
    from yolofleet.data.zip_folder import ZipFolder

    storage = open_storage(url)
    if isinstance(storage, FileStorage) and url.lower().endswith(".zip") and zipfile.is_zipfile(storage.root):
        return ZipFolder(storage.root, problems)
    return (
        SourceFolder(storage.root, problems, follow_links=follow_links) if isinstance(storage, FileStorage) else storage
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # the system's name for bytes that are not UTF-8
        return False
    return True
