"""Writing a log of JSON rows: by real appends on a disk, by putting its last part again in an object store.

``append`` never waits for a network and never fails because of the storage: training must not stop for its own log.
Rows that could not be written are kept and written with the next ones; ``flush`` returns when everything is stored, and
raises where the storage does not take it. A log has one writer: the last line is repaired on opening, and every write
checks the lock first, so that a writer whose run was taken over adds nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yolofleet.core.background import BackgroundLoop, EndLoop
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.storage import Storage, StorageError
from yolofleet.storage.lock import LockLostError
from yolofleet.tracking.json_lines import (
    BLOCK_BYTES,
    MOST_LOG_BYTES,
    PART_BYTES,
    Row,
    decode_row,
    encode_row,
    list_parts,
    part_index,
    part_key,
)

logger = logging.getLogger(__name__)

CheckLock = Callable[[], None]
"""Raises `yolofleet.storage.lock.LockLostError` when this process may no longer write."""


def always_allowed() -> None:
    """Check nothing, where no other process can know of the log."""


PUT_INTERVAL_SECONDS = 3.0
"""Pause between two puts of the last part; each is a request, and two more look whether the lock is still held."""
NOT_WRITTEN = "rows are kept in memory until they can be written"


class LogWriter(ABC):
    """The one writer of a log."""

    @abstractmethod
    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is kept in memory while the storage does not take it."""

    @abstractmethod
    def flush(self) -> None:
        """Return when every row is stored durably.

        Raises:
            StorageError: The storage does not take the rows; they are kept.
        """

    @abstractmethod
    def truncate(self, keep: Callable[[Row], bool]) -> None:
        """Remove the rows for which ``keep`` is false."""

    @abstractmethod
    def close(self) -> None:
        """Flush and release what is held."""


def open_log(
    storage: Storage,
    name: str,
    check_lock: CheckLock = always_allowed,
    *,
    put_interval_seconds: float = PUT_INTERVAL_SECONDS,
) -> LogWriter:
    """Open the log ``name`` for writing; an unfinished last line is removed."""
    check_lock()
    if storage.local_path(part_key(name, 0)) is not None:
        return FileLogWriter(storage, name, check_lock)
    return ObjectLogWriter(storage, name, check_lock, put_interval_seconds=put_interval_seconds)


def truncate_parts(storage: Storage, name: str, keep: Callable[[Row], bool]) -> None:
    """Remove the rows for which ``keep`` is false from a log that has no writer at the moment."""
    for part in reversed(list_parts(storage, name)):  # the newest first: a stop in between leaves no gap
        data, where = storage.get_at_most(part.key, MOST_LOG_BYTES), f"{storage.url}/{part.key}"
        lines = data.split(b"\n")[:-1]
        kept = b"".join(line + b"\n" for line in lines if (row := decode_row(line, where)) is not None and keep(row))
        if not kept:
            storage.delete(part.key)
        elif kept != data:
            storage.put(part.key, kept)


def end_of_last_row(data: bytes, where: str) -> int:
    """Return the number of bytes up to the end of the last line that holds a row.

    Raises:
        CorruptLogError: Its fields are not those of a row.
    """
    end = data.rfind(b"\n") + 1
    while end > 0:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        if decode_row(data[begin : end - 1], where) is not None:
            break
        end = begin
    return end


class FileLogWriter(LogWriter):
    """A log on a disk: every row is one append, which survives the death of the process."""

    def __init__(self, storage: Storage, name: str, check_lock: CheckLock = always_allowed) -> None:
        self._storage = storage.confined()
        self._name = name
        self._check_lock = check_lock
        self._lock = threading.Lock()
        self._pending: list[bytes] = []
        self._path, self._descriptor = self._open()

    def _open(self) -> tuple[Path, int]:
        parts = list_parts(self._storage, self._name)
        path = self._storage.local_path(parts[-1].key if parts else part_key(self._name, 0))
        if path is None:
            raise ValueError(f"{self._storage.url} is not on a disk")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            reason = "is a link; remove it" if error.errno == errno.ELOOP else error.strerror
            raise StorageError(f"{path}: cannot be opened for writing: {reason}") from error
        try:
            os.ftruncate(descriptor, _end_of_log(descriptor, path))
        except OSError as error:
            os.close(descriptor)
            raise StorageError(f"{path}: cannot be opened for writing: {error.strerror}") from error
        except BaseException:
            os.close(descriptor)
            raise
        return path, descriptor

    def append(self, row: Mapping[str, Any]) -> None:
        """Write the row with one append; with the next one if the disk refuses it."""
        line = encode_row(row)
        with self._lock:
            first_failure = not self._pending
            self._pending.append(line)
            try:
                self._write_pending()
            except (OSError, StorageError) as error:
                if first_failure:
                    logger.warning("%s: %s: %s", self._path, NOT_WRITTEN, error)

    def _write_pending(self) -> None:
        """Write whole lines or nothing: a half line would spoil the one that is appended after it."""
        data = b"".join(self._pending)
        if not data:
            return
        self._check_lock()
        size_bytes = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            os.ftruncate(self._descriptor, size_bytes)
            raise
        self._pending.clear()

    def flush(self) -> None:
        """Write what the disk refused before, and sync."""
        with self._lock:
            try:
                self._write_pending()
                os.fsync(self._descriptor)
            except OSError as error:
                raise StorageError(f"{self._path}: rows could not be written: {error.strerror}") from error

    def truncate(self, keep: Callable[[Row], bool]) -> None:
        """Rewrite the file without the rows for which ``keep`` is false."""
        self.flush()
        self._check_lock()
        with self._lock:
            os.close(self._descriptor)
            truncate_parts(self._storage, self._name, keep)
            self._path, self._descriptor = self._open()

    def close(self) -> None:
        """Flush and close the file; closing twice is no error."""
        if self._descriptor < 0:
            return
        try:
            self.flush()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1


def _end_of_log(descriptor: int, path: Path) -> int:
    """Return where the last row of a file ends; only the end of the file is read.

    Raises:
        StorageError: It is no file, or its end holds no row and is not all of it: nothing is cut off then.
        OSError: It cannot be read.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{path}: cannot be opened for writing: is no regular file; remove it")
    start = max(0, status.st_size - BLOCK_BYTES)
    end = end_of_last_row(os.pread(descriptor, BLOCK_BYTES, start), str(path))
    if start and not end:
        size = format_bytes(BLOCK_BYTES)
        raise StorageError(f"{path}: cannot be opened for writing: its last {size} hold no row; repair or remove it")
    return start + end


class ObjectLogWriter(LogWriter):
    """A log in an object store: rows gather in memory and a thread puts the last part every few seconds."""

    def __init__(
        self,
        storage: Storage,
        name: str,
        check_lock: CheckLock = always_allowed,
        *,
        put_interval_seconds: float = PUT_INTERVAL_SECONDS,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._storage = storage
        self._name = name
        self._check_lock = check_lock
        self._lost: LockLostError | None = None
        self._part_bytes = part_bytes
        self._lock = threading.Lock()  # guards the memory; never held during a request
        self._put_lock = threading.Lock()  # one put at a time, so that an older state never follows a newer one
        self._pending: list[bytes] = []
        self._started = self._closed = False
        self._loop = BackgroundLoop(
            self._put_until_lost,
            seconds=put_interval_seconds,
            name=f"log-{name}",
            warning=f"{storage.url}/{name}: {NOT_WRITTEN}",
        )
        self._part_index, self._part = self._newest_part()

    def _newest_part(self) -> tuple[int, bytes]:
        parts = list_parts(self._storage, self._name)
        if not parts:
            return 0, b""
        data = self._storage.get_at_most(parts[-1].key, MOST_LOG_BYTES)
        where = f"{self._storage.url}/{parts[-1].key}"
        return part_index(self._name, parts[-1]), data[: end_of_last_row(data, where)]

    def append(self, row: Mapping[str, Any]) -> None:
        """Add the row to what the thread puts next."""
        line = encode_row(row)
        if self._lost is not None:
            raise self._lost
        with self._lock:
            self._pending.append(line)
            if not (self._started or self._closed):
                self._started = True
                self._loop.start()

    def _put_until_lost(self) -> None:
        try:
            self._put_pending()
        except LockLostError as error:
            self._lost = error  # raised by the next `append`
            raise EndLoop from error

    def _put_pending(self) -> None:
        """Put the rows that wait now; those that come meanwhile wait for the next put."""
        with self._put_lock:
            num_left = len(self._pending)
            while num_left:
                with self._lock:
                    if len(self._part) >= self._part_bytes:
                        self._part_index, self._part = self._part_index + 1, b""
                    taken, size_bytes = 0, len(self._part)
                    while taken < num_left and size_bytes < self._part_bytes:
                        size_bytes += len(self._pending[taken])
                        taken += 1
                    grown = self._part + b"".join(self._pending[:taken])
                self._check_lock()
                self._storage.put(part_key(self._name, self._part_index), grown)
                with self._lock:
                    self._part = grown
                    del self._pending[:taken]
                num_left -= taken

    def flush(self) -> None:
        """Put the rows that wait."""
        self._put_pending()

    def truncate(self, keep: Callable[[Row], bool]) -> None:
        """Put the parts again without the rows for which ``keep`` is false."""
        self.flush()
        self._check_lock()
        with self._put_lock:
            truncate_parts(self._storage, self._name, keep)
            self._part_index, self._part = self._newest_part()

    def close(self) -> None:
        """Flush and end the thread."""
        self._closed = True
        try:
            self.flush()
        finally:
            self._loop.close()
