"""One object fetched into a file: a large one in ranges, by as many threads as have time for it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from yolofleet.storage import ObjectRange, Storage

BLOCK_BYTES = 1 << 20


class Download:
    """An object on its way; its context waits for all threads, so that nobody writes to its file behind it.

    All ranges are of the version of the object that the first came from. A thread of its own digests the object, block
    by block as they come.

    Args:
        storage: Where the object is.
        key: Its name there.
        first: Its first range, which was asked for already.
        target: Descriptor of the file.
        num_bytes: How much of the object to fetch.
        range_bytes: Most bytes of a further request.
        note_bytes: Called with the number of bytes whenever some have come.
    """

    def __init__(
        self,
        storage: Storage,
        key: str,
        first: ObjectRange,
        target: int,
        *,
        num_bytes: int,
        range_bytes: int,
        note_bytes: Callable[[int], None],
    ) -> None:
        self._storage = storage
        self._key = key
        self._first = first
        self._target = target
        self._num_bytes = num_bytes
        self._range_bytes = range_bytes
        self._note_bytes = note_bytes
        self._rest = deque(range(min(first.num_bytes, num_bytes), num_bytes, range_bytes))
        self._changed = threading.Condition()
        self._num_running = 0
        self._failure: BaseException | None = None
        self._digest = hashlib.sha256()
        self._arrived: dict[int, int] = {}  # start and end of blocks that are in the file and not yet digested
        self._is_over = False
        self._digester = threading.Thread(target=self._digest_blocks, name="digest", daemon=True)

    def __enter__(self) -> Self:
        self._digester.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._failure = self._failure or error
        self._wait()

    @property
    def has_rest(self) -> bool:
        """Whether there are ranges that no thread has taken yet."""
        return bool(self._rest) and self._failure is None

    def fetch_first(self) -> None:
        """Fetch the first range."""
        self._copy(self._first, 0, min(self._first.num_bytes, self._num_bytes))

    def fetch_range(self) -> None:
        """Fetch a range that no thread has taken yet, if there is one.

        What goes wrong is raised by `finish`, in the thread that began the download.
        """
        with self._changed:
            if not self.has_rest:
                return
            start = self._rest.popleft()
            self._num_running += 1
        try:
            end = min(start + self._range_bytes, self._num_bytes)
            self._copy(self._storage.open_range(self._key, start, end - start, self._first.version), start, end)
        except Exception as error:
            self._failure = self._failure or error
        finally:
            with self._changed:
                self._num_running -= 1
                self._changed.notify_all()

    def finish(self) -> str:
        """Wait until all ranges are there, and return the digest of the whole."""
        self._wait()
        if self._failure is not None:
            raise self._failure
        return self._digest.hexdigest()

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._num_running)
            self._is_over = True
            self._changed.notify_all()
        self._digester.join()

    def _copy(self, part: ObjectRange, start: int, end: int) -> None:
        with part.stream as stream:
            while start < end and self._failure is None and (block := stream.read(min(BLOCK_BYTES, end - start))):
                rest = memoryview(block)
                while rest:
                    rest = rest[os.pwrite(self._target, rest, start + len(block) - len(rest)) :]
                with self._changed:
                    self._arrived[start] = start + len(block)
                    self._changed.notify_all()
                start += len(block)
                self._note_bytes(len(block))

    def _digest_blocks(self) -> None:
        """Digest blocks in order, up to one that does not come."""
        position = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: position in self._arrived or self._is_over)  # noqa: B023 - called here
                end = self._arrived.pop(position, None)
            if end is None or self._failure is not None:
                return
            self._digest.update(os.pread(self._target, end - position, position))
            position = end
