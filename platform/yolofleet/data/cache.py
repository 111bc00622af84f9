"""The shard cache of a node: whole shards on local disk, shared by all processes of the node, bounded in bytes.

A shard is fetched as one stream, checked against its digest while it is written, and named by that digest, so datasets
share what they have in common. One process fetches while the others wait (file locks, which the kernel frees when a
process dies); a reader holds its file open, so a shard may be evicted under it. The least recently opened goes first.

The next shards are fetched in the background while the present ones are read.

What lies in the folder is trusted, so nobody else may write to it: it belongs to this user, has mode 0700 and is no
link. The names in it are digests, which the manifest has checked. Locks are never truncated, nor followed as links.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import queue
import re
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from yolofleet.core.errors import UserError
from yolofleet.core.local_files import local_path
from yolofleet.core.retry import retry
from yolofleet.data.manifest import ShardEntry, most_index_bytes
from yolofleet.storage import Storage, StorageError

BLOCK_BYTES = 1 << 20
NUM_LOCKS = 64
VERIFIED = "verified"
_OF_A_CACHE = re.compile(r"locks|verified|evict|\d\d|[0-9a-f]{64}(\.(tar|index|part))?")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
logger = logging.getLogger(__name__)


class CacheError(UserError):
    """A shard cannot be fetched into the cache."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """The folder for shards of remote storage, and how much of the disk they may take."""

    path: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / f"yolofleet-cache-{os.getuid()}")
    max_bytes: int = 100 * 2**30
    patience_seconds: float = 300.0
    """Time in which a fetch is retried: while storage does not answer, sends wrong bytes, or the disk is full."""


class ShardCache:
    """Shards of remote storage as local files."""

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._folder = own_folder(settings.path)
        self._locks = own_folder(self._folder / "locks")

    def verified(self, digest: str) -> Path:
        """Return the path of the note that says that what has this digest was verified."""
        return own_folder(self._folder / VERIFIED) / digest

    def open(self, storage: Storage, entry: ShardEntry) -> int:
        """Return a file descriptor of the shard's tar file; fetches it first unless it is cached."""
        path = self._folder / f"{entry.sha256}.tar"
        while True:
            try:
                descriptor = _open(path, os.O_RDONLY)
            except FileNotFoundError:
                self.ensure(storage, entry)
                continue  # another process may evict it before it is opened; then it is fetched again
            os.utime(path)  # its last use, for the eviction
            return descriptor

    def ensure(self, storage: Storage, entry: ShardEntry) -> None:
        """Fetch the shard unless it is cached.

        Raises:
            CacheError: The patience is over, or the shard is larger than the cache may be.
            StorageError: The storage refuses for good.
        """
        self._ensure(storage, entry.tar_key, entry.sha256, entry.bytes, ".tar")

    def index(self, storage: Storage, entry: ShardEntry) -> bytes:
        """Return the bytes of the shard's index."""
        path = self._folder / f"{entry.index_sha256}.index"
        while True:
            try:
                return path.read_bytes()
            except FileNotFoundError:
                self._ensure(storage, entry.index_key, entry.index_sha256, most_index_bytes(entry), ".index")

    def _ensure(self, storage: Storage, key: str, sha256: str, most_bytes: int, suffix: str) -> None:
        path = self._folder / f"{sha256}{suffix}"
        deadline = time.monotonic() + self._settings.patience_seconds  # waiting for the lock counts, too
        with self._locked(f"{int(sha256[:8], 16) % NUM_LOCKS:02d}"):
            if path.exists():
                os.utime(path)  # it will be opened soon: not the next one to be evicted
                return
            try:
                retry(
                    lambda: self._fetch(storage, key, sha256, most_bytes, path),
                    patience_seconds=deadline - time.monotonic(),
                    is_transient=_is_transient,
                    on_retry=lambda error, pause: logger.warning(
                        "%s/%s: %s; trying again in %.1f s", storage.url, key, error, pause
                    ),
                )
            except (StorageError, _TransientError) as error:
                if not _is_transient(error):
                    raise
                waited = f"after waiting {self._settings.patience_seconds:g} s"
                raise CacheError(f"{storage.url}/{key}: given up {waited}: {error}") from error

    def _fetch(self, storage: Storage, key: str, sha256: str, most_bytes: int, path: Path) -> None:
        """Fetch one object. The caller holds its lock, so the left-over part of a dead process is replaced."""
        part = path.with_suffix(".part")
        digest, start = hashlib.sha256(), b""
        try:
            with storage.open_stream(key) as source:
                self._reserve(part, min(most_bytes, storage.stream_bytes(source)))
                with part.open("r+b") as target:
                    while target.tell() <= most_bytes and (block := source.read(BLOCK_BYTES)):
                        start = start or block[:40]
                        digest.update(block)
                        target.write(block)
                    target.truncate()
                    received = target.tell()
            if digest.hexdigest() != sha256:
                raise _TransientError(
                    f"{received} bytes came that are not the object (at most {most_bytes} bytes with digest "
                    f"{sha256[:12]}...); they start with {start!r}"
                )
            part.replace(path)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise _TransientError(f"the disk of the cache {self._folder} is full") from error
            raise CacheError(f"cache {self._folder}: {error.strerror or error}") from error
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path, size_bytes: int) -> None:
        """Evict until the object fits and reserve its bytes, so that processes together stay within the bound."""
        if size_bytes > self._settings.max_bytes:
            raise CacheError(
                f"cache.max_bytes is {self._settings.max_bytes:,}, but one shard alone has {size_bytes:,} bytes; "
                "allow more, or build smaller shards"
            )
        with self._locked("evict"):
            part.unlink(missing_ok=True)  # its bytes do not count
            files = sorted(self._files(), key=lambda item: item[0])
            total = sum(size for _, size, _ in files)
            evictable = [(size, path) for _, size, path in files if path.suffix != ".part"]
            while True:
                is_full = total + size_bytes > self._settings.max_bytes
                if not is_full and self._allocate(part, size_bytes, is_last=not evictable):
                    return
                if not evictable:
                    raise _TransientError(f"the cache {self._folder} is full of shards that are being fetched")
                size, path = evictable.pop(0)
                path.unlink(missing_ok=True)
                total -= size

    def _allocate(self, part: Path, size_bytes: int, *, is_last: bool) -> bool:
        """Reserve bytes on the disk; False if there are too few and a file could still be evicted."""
        part.unlink(missing_ok=True)
        with part.open("xb") as target:
            try:
                if size_bytes:
                    os.posix_fallocate(target.fileno(), 0, size_bytes)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot reserve
                    os.truncate(target.fileno(), size_bytes)
                elif error.errno in _DISK_FULL and not is_last:
                    return False
                else:
                    raise
        return True

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield last use, size and path of every file in the cache."""
        for entry in os.scandir(self._folder):
            if entry.name.endswith((".tar", ".index", ".part")):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # evicted by another process at this moment
                yield status.st_mtime, status.st_size, Path(entry.path)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with os.fdopen(_open(self._locks / name, os.O_RDWR | os.O_CREAT), "r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _open(path: Path, flags: int) -> int:
    """Open a file of the cache, never through a link."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheError(f"cache {path}: cannot be opened ({error.strerror}); remove it") from error


def own_folder(path: Path) -> Path:
    """Return the absolute path of a folder that this user alone can use; it is made where it is missing.

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
        raise CacheError(f"cache.path {folder}: cannot be made: {error.strerror}") from error
    if wrong is not None:
        raise CacheError(
            f"cache.path {folder}: {wrong}; name a folder that does not exist yet, or make it yours alone (chmod 700)"
        )
    return folder


class _TransientError(Exception):
    """A fetch failed for a reason that may pass."""


def _is_transient(error: Exception) -> bool:
    return isinstance(error, _TransientError) or (isinstance(error, StorageError) and error.transient)


class Prefetcher:
    """Fetches shards one after the other in a daemon thread of its own.

    Nothing depends on it: a shard that it could not fetch is fetched by its reader, which then raises the error. Asking
    again for a cached shard costs next to nothing, and keeps it from being evicted next.

    Args:
        fetch: Fetches a shard, by number, into the cache unless it is there.
    """

    def __init__(self, fetch: Callable[[int], None]) -> None:
        self._fetch = fetch
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._asked: set[int] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, shards: list[int]) -> None:
        """Ask for shards, in this order; shards of earlier calls that are not named again are dropped."""
        with self._lock:
            self._asked = set(shards)
            for shard in shards:
                self._wanted.put(shard)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="shard-prefetch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            shard = self._wanted.get()
            with self._lock:
                is_wanted = shard in self._asked
            if not is_wanted:
                continue  # its window is over
            try:
                self._fetch(shard)
            except UserError as error:
                logger.warning("fetching shard %d ahead failed: %s", shard, error)
