"""Room in the shard cache: bytes on the disk for what is being fetched, bounded over all processes of the node.

What is fetched ahead of need takes the room of what no process has said it will read soon, the longest unused first.
Who needs a shard now takes any room: after that, the room of shards that were opened before (a reader holds its file
open, so a shard may be evicted under it), at last of those fetched ahead, the last fetched first. What is being fetched
ahead never takes all: room for one more shard is left to those in need.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yolofleet.data.cache_folder import CacheError
from yolofleet.data.cache_locks import CacheLocks

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_FILE_NAME = re.compile(r"[0-9a-f]{64}\.(tar|index|part)")


class CacheFullError(Exception):
    """There is no room now."""


@dataclass(frozen=True)
class _File:
    """A file of the cache; its name is its digest."""

    path: Path
    num_bytes: int
    used_at: float
    """When it was last opened, or else fetched."""
    was_opened: bool


class CacheRoom:
    """The room of one cache.

    Args:
        folder: The cache's.
        max_bytes: Most bytes that it holds.
        locks: The cache's.
    """

    def __init__(self, folder: Path, max_bytes: int, locks: CacheLocks) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._locks = locks

    def reserve(self, part: Path, num_bytes: int, *, is_ahead: bool) -> None:
        """Make the file of an object that the caller has the right to fetch, with its bytes reserved on the disk.

        Args:
            part: The file; one that is there is of a dead process.
            num_bytes: How large it will be.
            is_ahead: Whether nobody waits for it yet.

        Raises:
            CacheFullError: There is no room now.
            CacheError: There will never be room for so much.
            OSError: The disk is full, or broken.
        """
        if num_bytes > self._max_bytes:
            raise CacheError(
                f"cache.max_bytes is {self._max_bytes:,}, but one shard alone has {num_bytes:,} bytes; "
                "allow more, or build smaller shards"
            )
        with self._locks.making_room():
            part.unlink(missing_ok=True)
            files = [*self._files()]
            parts = [file for file in files if file.path.suffix == ".part" and not self._evict(file)]
            whole = [file for file in files if file.path.suffix != ".part"]
            fetched_bytes = sum(file.num_bytes for file in parts)
            total_bytes = fetched_bytes + sum(file.num_bytes for file in whole)
            if is_ahead and fetched_bytes + 2 * num_bytes > self._max_bytes:
                raise CacheFullError(f"the cache {self._folder} has no room for more ahead")
            freed = self._make_room(whole, wanted_too=not is_ahead)
            while (is_over := total_bytes + num_bytes > self._max_bytes) or not _allocate(part, num_bytes):
                if (bytes_of_one := next(freed, None)) is not None:
                    total_bytes -= bytes_of_one
                elif is_over:
                    raise CacheFullError(f"the cache {self._folder} is full of shards that are being fetched")
                else:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _files(self) -> Iterator[_File]:
        for entry in os.scandir(self._folder):
            if _FILE_NAME.fullmatch(entry.name):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it got its name at this moment
                yield _File(Path(entry.path), status.st_size, status.st_mtime, status.st_atime > 0)

    def _make_room(self, files: list[_File], *, wanted_too: bool) -> Iterator[int]:
        """Evict one file after the other and yield their sizes."""
        wanted = []
        for file in sorted(files, key=lambda file: file.used_at):
            if self._evict(file, although_wanted=False):
                yield file.num_bytes
            else:
                wanted.append(file)
        wanted.sort(key=lambda file: (not file.was_opened, file.used_at if file.was_opened else -file.used_at))
        for file in wanted if wanted_too else ():
            if self._evict(file):
                yield file.num_bytes

    def _evict(self, file: _File, *, although_wanted: bool = True) -> bool:
        """Remove a file, unless somebody has the right to fetch its object or wants it; returns whether it is gone."""
        with self._locks.evicting(file.path.stem, although_wanted=although_wanted) as may_evict:
            if may_evict:
                file.path.unlink(missing_ok=True)
        return may_evict


def mark_unopened(part: Path) -> None:
    """Note on a file that nobody has opened it since it was fetched; `os.utime` takes the note away."""
    os.utime(part, (0, part.stat().st_mtime))


def _allocate(part: Path, num_bytes: int) -> bool:
    """Make a file with bytes reserved on the disk; False where it has too few."""
    part.unlink(missing_ok=True)
    with part.open("xb") as target:
        try:
            if num_bytes:
                os.posix_fallocate(target.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot reserve
                os.truncate(target.fileno(), num_bytes)
            elif error.errno in DISK_FULL:
                return False
            else:
                raise
    return True
