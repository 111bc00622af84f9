"""The folder of the shard cache: whose it is, who holds what of it, and what room it has.

What lies in the folder is trusted, so nobody else may write to it: it belongs to this user, has mode 0700 and is no
link. Its files are opened as they are, never through a link.

**Locks.** An object has two bytes of one file, at an offset made of its digest: whoever fetches it holds the first, and
every process that will read it soon holds a share of the second. They are locks of open file descriptions
(``F_OFD_SETLK``): each one that opens the file has locks of its own, threads of one process too, and the kernel frees
them when the process dies. The file is never written to.

**Room.** What is fetched ahead of need takes the room of what no process has said it will read soon, the longest unused
first. Who needs a shard now takes any room: after that, the room of shards that were opened before (a reader holds its
file open, so a shard may be evicted under it), at last of those fetched ahead, the last fetched first. What is being
fetched ahead never takes all: room for one more shard is left to those in need.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import SHARD_CACHE_BYTES_VARIABLE, SHARD_CACHE_VARIABLE
from yolofleet.core.local_files import local_path
from yolofleet.core.text import plural

RANGE_BYTES = 16 << 20
"""On a connection of 80 MB/s, the 30 ms until the bytes come are a seventh of a request's time."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM_BYTE = 1 << 62
"""Its holder alone makes room; it lies behind the bytes of all objects."""
_NUM_DIGITS = 15
_FILE_NAME = re.compile(r"[0-9a-f]{64}\.(tar|index|part)")
_OF_A_CACHE = re.compile(r"lock|locks|verified|evict|\d\d|[0-9a-f]{64}(\.(tar|index|part))?")


class CacheError(UserError):
    """A shard cannot be fetched into the cache."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """The folder for shards of remote storage, how much of the disk they may take, and how they are fetched."""

    path: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / f"yolofleet-cache-{os.getuid()}")
    max_bytes: int = 100 * 2**30
    patience_seconds: float = 300.0
    """Time in which a fetch is retried: while storage does not answer, sends wrong bytes, or the disk is full."""
    fetchers: int | None = None
    """Shards, or ranges of them, that the node fetches ahead at a time; None finds out how many bring bandwidth."""
    range_bytes: int = RANGE_BYTES
    """Most bytes of one request."""

    def on_this_node(self) -> CacheSettings:
        """Return the settings with the folder and the limit that the node's environment gives."""
        path, most = os.environ.get(SHARD_CACHE_VARIABLE), os.environ.get(SHARD_CACHE_BYTES_VARIABLE)
        if most is not None and not most.isdecimal():
            raise CacheError(f"{SHARD_CACHE_BYTES_VARIABLE} is {most!r}; set it to a number of bytes")
        return replace(
            self,
            path=Path(path) if path else self.path,
            max_bytes=self.max_bytes if most is None else min(self.max_bytes, int(most)),
        )


def open_file(path: Path, flags: int) -> int:
    """Open a file of the cache, never through a link, and return its descriptor.

    Raises:
        FileNotFoundError: There is none.
        CacheError: It cannot be opened.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheError(f"cache {path}: cannot be opened ({error.strerror}); remove it") from error


def own_folder(path: Path, *, setting: str = "cache.path") -> Path:
    """Return the absolute path of a folder that this user alone can use; it is made where it is missing.

    Args:
        path: The folder.
        setting: What names it, for messages.

    Raises:
        CacheError: It cannot be made, or somebody else could have put something into it.
    """
    folder = local_path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        mode, wrong = stat.S_IMODE(status.st_mode), None
        if status.st_uid != os.geteuid():
            wrong = f"belongs to user {status.st_uid}, not to {os.geteuid()}"
        elif stat.S_ISLNK(status.st_mode):
            wrong = "is a link"
        elif mode & 0o022 or (mode & 0o077 and not all(_OF_A_CACHE.fullmatch(path.name) for path in folder.iterdir())):
            wrong = f"can be used by others (mode {mode:04o})"
        elif mode & 0o077:  # an older version made it
            folder.chmod(0o700)
    except OSError as error:
        raise CacheError(f"{setting} {folder}: cannot be made: {error.strerror}") from error
    if wrong is not None:
        raise CacheError(
            f"{setting} {folder}: {wrong}; name a folder that does not exist yet, or make it private (chmod 700)"
        )
    return folder


def verified_note(cache: Path, digest: str) -> Path:
    """Return the path of the note, in a cache's folder, that what has this digest was verified."""
    return own_folder(own_folder(cache) / "verified") / digest


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
                f"cache.max_bytes is {self._max_bytes:,}, but one shard alone has {plural(num_bytes, 'byte')}; "
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

    def keep(self, part: Path, path: Path) -> None:
        """Give an object that was fetched its name, with a note that nobody has opened it; `os.utime` takes that away.

        A folder that is listed meanwhile may show neither name, so nobody counts its bytes at this moment.
        """
        with self._locks.making_room():
            os.utime(part, (0, part.stat().st_mtime))
            part.replace(path)

    def _files(self) -> Iterator[_File]:
        for entry in os.scandir(self._folder):
            if _FILE_NAME.fullmatch(entry.name):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # a part whose fetch failed at this moment
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
