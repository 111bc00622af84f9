"""The shard cache of a node: whole shards on local disk, shared by all processes of the node, bounded in bytes.

A shard is checked against its digest before it gets its name, which is that digest, so datasets share what they have in
common. One thread of the node fetches it, and others of its process help where it is large; who needs it waits for its
lock, which the kernel frees when a process dies. Who needs a shard that nobody fetches, fetches it: so nobody waits
for shards of others. The names in the folder are digests, which the manifest has checked.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from yolofleet.core.retry import retry
from yolofleet.core.text import plural
from yolofleet.data.cache_folder import (
    DISK_FULL,
    CacheError,
    CacheFullError,
    CacheLocks,
    CacheRoom,
    CacheSettings,
    open_file,
    own_folder,
)
from yolofleet.data.download import Download
from yolofleet.data.fetchers import FIRST_FETCHERS, FetcherCount, Fetchers, Outcome
from yolofleet.data.manifest import ShardEntry, most_index_bytes
from yolofleet.storage import ObjectChangedError, Storage, StorageError

LONGEST_WAIT_FOR_ROOM_SECONDS = 0.5
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Object:
    """A part of a shard that is one object: its tar file, or its index."""

    key: str
    sha256: str
    most_bytes: int
    suffix: str

    @staticmethod
    def tar(entry: ShardEntry) -> _Object:
        return _Object(entry.tar_key, entry.sha256, entry.bytes, ".tar")

    @staticmethod
    def index(entry: ShardEntry) -> _Object:
        return _Object(entry.index_key, entry.index_sha256, most_index_bytes(entry), ".index")


class ShardCache:
    """Shards of remote storage as local files."""

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._folder = own_folder(settings.path)
        self._locks = CacheLocks(self._folder / "lock")
        self._room = CacheRoom(self._folder, settings.max_bytes, self._locks)
        self._fetchers = Fetchers(FetcherCount.of_process(settings.fetchers))
        self._index_fetchers = Fetchers(FetcherCount.of_process(FIRST_FETCHERS))  # small: they cost no bandwidth

    def open(self, storage: Storage, entry: ShardEntry) -> int:
        """Return a file descriptor of the shard's tar file; fetches it first unless it is cached.

        Raises:
            CacheError: The patience is over, or the shard is larger than the cache may be.
            StorageError: The storage refuses for good.
        """
        return self._open(storage, _Object.tar(entry))

    def index(self, storage: Storage, entry: ShardEntry) -> bytes:
        """Return the bytes of the shard's index; it raises what `open` raises."""
        with os.fdopen(self._open(storage, _Object.index(entry)), "rb") as file:
            return file.read()

    def prefetch(self, storage: Storage, entries: Sequence[ShardEntry]) -> None:
        """Fetch shards in the background, the first first, and keep them until the next call that does not name them.

        Shards that earlier calls named and this one does not are fetched no more.
        """
        tars, indexes = [*map(_Object.tar, entries)], [*map(_Object.index, entries)]
        self._locks.want({wanted.sha256 for wanted in tars + indexes})
        for fetchers, objects in ((self._fetchers, tars), (self._index_fetchers, indexes)):
            fetchers.ask({wanted.sha256: partial(self._fetch_ahead, storage, wanted) for wanted in objects})

    def close(self) -> None:
        """Fetch nothing ahead any longer, and keep nothing; what was opened can still be read."""
        self._locks.want(())
        for fetchers in (self._fetchers, self._index_fetchers):
            fetchers.close()

    def _path(self, wanted: _Object) -> Path:
        return self._folder / f"{wanted.sha256}{wanted.suffix}"

    def _open(self, storage: Storage, wanted: _Object) -> int:
        path = self._path(wanted)
        try:
            descriptor = open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            descriptor = self._fetch_now(storage, wanted, path)
        os.utime(descriptor)  # its last use, for the eviction
        return descriptor

    def _fetch_now(self, storage: Storage, wanted: _Object, path: Path) -> int:
        deadline = time.monotonic() + self._settings.patience_seconds  # waiting for the lock counts, too
        with self._locks.fetching(wanted.sha256, wait=True):
            try:
                if not path.exists():  # nobody has fetched it meanwhile
                    retry(
                        lambda: self._fetch(storage, wanted, path, deadline),
                        patience_seconds=deadline - time.monotonic(),
                        is_transient=_is_transient,
                        on_retry=lambda error, pause: logger.warning(
                            "%s/%s: %s; trying again in %.1f s", storage.url, wanted.key, error, pause
                        ),
                    )
            except (StorageError, _TransientError, CacheFullError) as error:
                if not _is_transient(error):
                    raise
                waited = f"after waiting {self._settings.patience_seconds:g} s"
                raise CacheError(f"{storage.url}/{wanted.key}: given up {waited}: {error}") from error
            return open_file(path, os.O_RDONLY)  # while nobody can evict it

    def _fetch_ahead(self, storage: Storage, wanted: _Object) -> Outcome:
        path = self._path(wanted)
        if path.exists():
            return Outcome.DONE
        with self._locks.fetching(wanted.sha256, wait=False) as is_ours:
            if not is_ours:
                return Outcome.BUSY
            try:
                if not path.exists():
                    self._fetch(storage, wanted, path, deadline=None)
            except CacheFullError:
                return Outcome.FULL
            except (StorageError, _TransientError) as error:
                if not _is_transient(error):
                    raise
                logger.warning("%s/%s: fetching it ahead failed: %s", storage.url, wanted.key, error)
                return Outcome.FAILED
        return Outcome.DONE

    def _fetch(self, storage: Storage, wanted: _Object, path: Path, deadline: float | None) -> None:
        """Fetch one object. The caller holds its lock, so the left-over part of a dead process is replaced.

        Args:
            storage: Where it is.
            wanted: What it is.
            path: Where it belongs.
            deadline: How long to wait for room; None: it is fetched ahead.
        """
        part = path.with_suffix(".part")
        try:
            if deadline is None:  # never ask for what there is no room for
                self._room.reserve(part, wanted.most_bytes, is_ahead=True)
            first = storage.open_range(wanted.key, 0, self._settings.range_bytes)
            with first.stream:
                num_bytes = min(wanted.most_bytes, first.object_bytes)
                if deadline is not None:
                    retry(
                        lambda: self._room.reserve(part, num_bytes, is_ahead=False),
                        patience_seconds=deadline - time.monotonic(),
                        is_transient=lambda error: isinstance(error, CacheFullError),
                        longest_pause_seconds=LONGEST_WAIT_FOR_ROOM_SECONDS,
                    )
                with part.open("r+b") as target:
                    target.truncate(num_bytes)
                    with Download(
                        storage,
                        wanted.key,
                        first,
                        target.fileno(),
                        num_bytes=num_bytes,
                        range_bytes=self._settings.range_bytes,
                        note_bytes=self._fetchers.note_bytes,
                    ) as download:
                        digest = self._run(download, is_urgent=deadline is not None)
                    if digest != wanted.sha256:
                        start = os.pread(target.fileno(), 40, 0)
                        raise _TransientError(
                            f"{plural(num_bytes, 'byte')} came that are not the object (at most "
                            f"{wanted.most_bytes:,} with digest {wanted.sha256[:12]}...); they start with {start!r}"
                        )
                    os.fsync(target.fileno())  # its name says from now on that its bytes are there
            self._room.keep(part, path)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise _TransientError(f"the disk of the cache {self._folder} is full") from error
            raise CacheError(f"cache {self._folder}: {error.strerror or error}") from error
        finally:
            part.unlink(missing_ok=True)

    def _run(self, download: Download, *, is_urgent: bool) -> str:
        """Fetch an object with the help of the fetchers, and return its digest.

        A fetcher takes ranges of what is more urgent first; who needs the object now takes its own.
        """
        with self._fetchers.helping(download, is_urgent=is_urgent):
            download.fetch_first()
            while download.has_rest:
                download.fetch_range() if is_urgent else self._fetchers.help()
            return download.finish()


class _TransientError(Exception):
    """A fetch failed for a reason that may pass."""


def _is_transient(error: Exception) -> bool:
    if isinstance(error, StorageError):
        return error.transient or isinstance(error, ObjectChangedError)
    return isinstance(error, _TransientError | CacheFullError)
