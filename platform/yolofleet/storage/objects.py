"""The interface of every storage: whole objects by key below a root, and the faults that its calls outlasted."""

from __future__ import annotations

import os
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural, short

MOST_OFTEN_SECONDS = 10.0
"""Outages are reported at most this often, even where an endpoint refuses every tenth call."""


@dataclass(frozen=True)
class Outage:
    """Transient faults that are over."""

    seconds: float
    """From the first fault to the first answer after it; several outages are added up."""
    tries: int
    """Calls that failed meanwhile."""
    reason: str
    """The newest of the faults."""


class Outages:
    """Collects the transient faults of a storage until a caller takes them; thread-safe.

    Args:
        clock: Seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._seconds = 0.0
        self._tries = 0
        self._reason = ""
        self._taken_at: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()  # a storage goes to other processes with its dataset

    def note_fault(self, reason: str) -> None:
        """Count a call that failed with a transient fault."""
        with self._lock:
            self._began = self._clock() if self._began is None else self._began
            self._tries += 1
            self._reason = reason

    def note_answer(self) -> None:
        """End the outage, if there is one: a call was answered."""
        if self._began is None:  # the ordinary case, without the lock
            return
        with self._lock:
            if self._began is not None:
                self._seconds += self._clock() - self._began
                self._began = None

    def take(self) -> Outage | None:
        """Return the faults since the last report; None if there are none, or the outage is not over."""
        if not self._tries:
            return None
        with self._lock:
            now = self._clock()
            too_soon = self._taken_at is not None and now - self._taken_at < MOST_OFTEN_SECONDS
            if not self._tries or self._began is not None or too_soon:
                return None
            outage = Outage(round(self._seconds, 3), self._tries, self._reason)
            self._seconds, self._tries, self._taken_at = 0.0, 0, now
            return outage


TEMPORARY_PREFIX = ".tmp-"
"""Files that are being written; no listing shows them."""

Result = TypeVar("Result")


class StorageError(UserError):
    """An object could not be read or written; ``transient`` tells whether waiting may help."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


def is_transient(error: Exception) -> bool:
    """Return whether waiting may help."""
    return isinstance(error, StorageError) and error.transient


class ObjectNotFoundError(StorageError):
    """There is no such object."""


class ObjectChangedError(StorageError):
    """The object is no longer the one that was read from before."""


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object: its key below the storage's root, and its size."""

    key: str
    size_bytes: int
    modified_at: float = field(default=0.0, compare=False)
    """When it was written, in seconds since 1970 by the storage's clock; 0 where the listing does not say."""


@dataclass(frozen=True)
class ObjectRange:
    """Bytes of an object that follow each other."""

    stream: BufferedReader
    """To be read from front to back; it may have more bytes than the range."""
    num_bytes: int
    """Bytes of the range: as many as were asked for, or up to the end of the object; more where the storage gives
    nothing but whole objects."""
    object_bytes: int
    """Size of the object."""
    version: str | None
    """Names this content of the object; None where the storage has no name for it."""


class Storage(ABC):
    """Objects below one root. Keys are relative, with ``/`` between their parts, and never leave the root.

    Attributes:
        url: Where the root is.
        outages: Faults that calls have outlasted; shared with `child`.
    """

    url: str

    def __init__(self, outages: Outages | None = None) -> None:
        self.outages = Outages() if outages is None else outages

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the whole object."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``; a shorter object is an error."""

    def get_from(self, key: str, start: int, most_bytes: int | None = None) -> bytes:
        """Return the object from byte ``start`` to its end, or as many bytes; nothing where it ends before."""
        return self.get(key)[start : None if most_bytes is None else start + most_bytes]

    @abstractmethod
    def open_stream(self, key: str) -> BufferedReader:
        """Open the object for one sequential read; a broken connection is resumed where it stopped."""

    @abstractmethod
    def put(self, key: str, data: bytes | bytearray | Path) -> None:
        """Write the whole object; readers see the old one or the new one, never a part."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists; returns whether it was written (atomic where the endpoint allows)."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Return every object whose key starts with ``prefix``, sorted by key."""

    @abstractmethod
    def size_bytes(self, key: str) -> int:
        """Return the object's size."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""

    @abstractmethod
    def child(self, prefix: str) -> Storage:
        """Return the storage whose root is ``prefix`` below this one's."""

    def confined(self) -> Storage:
        """Return this storage without what links lead to outside of its root, for what strangers may write to.

        The root itself may be a link. Nothing is ever written or removed through a link that leads out.
        """
        return self

    def local_path(self, key: str) -> Path | None:
        """Return the object's path on this machine's disk, or None where it is remote."""
        return None

    def honours_conditions(self, key: str) -> bool:
        """Return whether the second of two conditional writes of an object is refused; the object is removed again."""
        try:
            return self.put_if_absent(key, b"first") and not self.put_if_absent(key, b"second")
        finally:
            self.delete(key)

    def holds_markers(self, key: str) -> bool:
        """Return whether objects are still seen below a directory marker, an empty object whose name ends in a slash.

        What is written for it is removed again.
        """
        return True

    def stream_bytes(self, stream: BufferedReader) -> int:
        """Return the size of the object that `open_stream` opened."""
        return os.fstat(stream.fileno()).st_size

    def open_range(self, key: str, start: int, length: int, version: str | None = None) -> ObjectRange:
        """Open a range of an object for one sequential read; a broken connection is resumed where it stopped.

        Args:
            key: Name of the object.
            start: First byte.
            length: Most bytes.
            version: What the object must still be; None takes what is there.

        Raises:
            ObjectChangedError: It is another one meanwhile, or ends before the range begins.
            StorageError: It cannot be read.
        """
        stream = self.open_stream(key)
        object_bytes = self.stream_bytes(stream)
        stream.seek(start)
        return ObjectRange(stream, max(0, min(length, object_bytes - start)), object_bytes, None)

    def get_at_most(self, key: str, most_bytes: int) -> bytes:
        """Return the whole object; one with more bytes than it can have is an error, and is not read."""
        with self.open_stream(key) as source:
            if (size := self.stream_bytes(source)) > most_bytes:
                raise StorageError(f"{self.url}/{key}: {size:,} bytes are too many for such a file ({most_bytes:,})")
            return source.read(size)

    def exists(self, key: str) -> bool:
        """Return whether the object exists."""
        try:
            self.size_bytes(key)
        except ObjectNotFoundError:
            return False
        return True

    def download(self, key: str, path: Path) -> None:
        """Copy the object to a local file, which appears whole or not at all."""
        check_key(key)  # the path may have been made of it
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            with self.open_stream(key) as source, temporary.open("wb") as target:
                while block := source.read(1 << 20):
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        """Remove every object whose key starts with ``prefix``."""
        for entry in self.list(prefix):
            self.delete(entry.key)


@dataclass(frozen=True)
class StoredFile:
    """One object by its URL, where a command takes a file."""

    url: str
    """As the user wrote it, for messages."""
    storage: Storage
    """Its folder."""
    name: str
    """Its name in the folder."""

    def __str__(self) -> str:
        return self.url

    def read(self, most_bytes: int) -> bytes:
        """Return the object's content.

        Raises:
            StorageError: It cannot be read, or has more bytes.
        """
        return self.storage.get_at_most(self.name, most_bytes)


def is_key(key: str) -> bool:
    """Return whether a text is a relative path that does not leave its root."""
    parts = key.split("/")
    return not ("\\" in key or "\0" in key or any(part in ("", ".", "..") for part in parts))


def check_key(key: str) -> str:
    """Return the key, or raise if it would leave its root."""
    if not is_key(key):
        raise StorageError(f"key {short(key)} is not a plain relative path; use names joined by '/', without '..'")
    return key


def check_length(data: bytes, length: int, name: str, start: int) -> bytes:
    """Return the data, or raise if the object ended before the wanted range did."""
    if len(data) != length:
        wanted = plural(length, "byte")
        raise StorageError(f"{name}: wanted {wanted} at {start}, the object ends after {len(data)} of them")
    return data
