"""Locks on the objects of the shard cache, among threads and processes: bytes of one file, for no object a file.

An object has two bytes, at an offset made of its digest: whoever fetches it holds the first, and every process that
will read it soon holds a share of the second. Only an object of which nobody holds either is evicted for another that
is fetched ahead.

They are locks of open file descriptions (``F_OFD_SETLK``): each one that opens the file has locks of its own, threads
of one process too, and the kernel frees them when the process dies. The file is never written to.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from yolofleet.data.cache_folder import CacheError, open_file

_ROOM_BYTE = 1 << 62
"""Its holder alone makes room; it lies behind the bytes of all objects."""
_NUM_DIGITS = 15


class CacheLocks:
    """The locks of one cache.

    Args:
        path: The file; it is made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._wanted_file: BinaryIO | None = None  # closed, and its locks with it, when nobody holds this object
        self._wanted: set[int] = set()

    @contextmanager
    def fetching(self, digest: str, *, wait: bool) -> Iterator[bool]:
        """Hold the right to fetch an object; yields False where another holds it and is not waited for."""
        with self._held(_first_byte(digest), 1, wait=wait) as is_held:
            yield is_held

    @contextmanager
    def evicting(self, digest: str, *, although_wanted: bool) -> Iterator[bool]:
        """Hold the right to evict an object; yields False where it is being fetched, or wanted and that counts."""
        with self._held(_first_byte(digest), 1 if although_wanted else 2, wait=False) as is_held:
            yield is_held

    @contextmanager
    def making_room(self) -> Iterator[None]:
        """Hold the right to evict and to reserve; nobody who holds it waits for another lock."""
        with self._held(_ROOM_BYTE, 1, wait=True):
            yield

    def want(self, digests: Collection[str]) -> None:
        """Protect objects that this process will read soon, in place of those of the call before."""
        wanted = {_first_byte(digest) + 1 for digest in digests}
        with self._mutex:
            if wanted == self._wanted:
                return
            if self._wanted_file is None:
                self._wanted_file = os.fdopen(self._open(), "r+b")
            for byte in self._wanted - wanted:
                self._set(self._wanted_file.fileno(), fcntl.F_UNLCK, byte, 1)
            for byte in wanted - self._wanted:
                self._set(self._wanted_file.fileno(), fcntl.F_RDLCK, byte, 1)
            self._wanted = wanted

    @contextmanager
    def _held(self, start: int, num_bytes: int, *, wait: bool) -> Iterator[bool]:
        descriptor = self._open()
        try:
            yield self._set(descriptor, fcntl.F_WRLCK, start, num_bytes, wait=wait)
        finally:
            # Closing alone would not free it while a process that was forked meanwhile has the descriptor, too.
            self._set(descriptor, fcntl.F_UNLCK, start, num_bytes)
            os.close(descriptor)

    def _set(self, descriptor: int, kind: int, start: int, num_bytes: int, *, wait: bool = True) -> bool:
        """Set a lock, or free it; False: another holds it, and is not waited for."""
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, num_bytes, 0)  # struct flock
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, lock)
        except OSError as error:
            if not wait and error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise CacheError(
                f"cache {self._path}: cannot be locked ({error.strerror}); set cache.path to a folder on a local disk"
            ) from error
        return True

    def _open(self) -> int:
        return open_file(self._path, os.O_RDWR | os.O_CREAT)


def _first_byte(digest: str) -> int:
    return 2 * int(digest[:_NUM_DIGITS], 16)
