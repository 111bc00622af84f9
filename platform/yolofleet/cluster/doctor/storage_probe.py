"""Storage from a node: the run directory's written, read and removed, the data's read; how fast; and its promises."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from yolofleet.cluster.doctor.finding import Line
from yolofleet.core.background import within
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError
from yolofleet.data.manifest import Manifest
from yolofleet.storage import ObjectNotFoundError, Storage, StorageError, open_storage

RUNS_SUBJECT = "storage of runs"
CONDITION_SUBJECT = "conditional put"
FOLDER = "_doctor"
"""No run can have this name."""
MARKER = b"written by the one that asks"
PROBE_BYTES = 16 * 2**20
READ_SECONDS = 5.0
LEAST_TELLING_BYTES = 4 * 2**20
"""Of less, opening it takes most of the time."""
PATIENCE_SECONDS = 6.0
"""How long a storage that does not answer is asked again."""
MARK_SECONDS = 60.0
SLOW_BYTES_PER_SECOND = 10e6
CREDENTIALS_CURE = (
    "give every node the credentials and the endpoint in its environment, and use storage that all nodes reach "
    "(s3://, or a folder that is mounted on all of them)"
)


@dataclass(frozen=True)
class RunsFound:
    """What a node found at the storage of runs.

    Attributes:
        problem: What did not work; None: all of it did.
        write_bytes_per_second: Speed of one object's way there.
        read_bytes_per_second: Speed of its way back.
        honours_conditions: Whether the second of two conditional puts was refused.
    """

    problem: str | None = None
    write_bytes_per_second: float = 0.0
    read_bytes_per_second: float = 0.0
    honours_conditions: bool = True


@dataclass(frozen=True)
class DataFound:
    """What a node found at a dataset.

    Attributes:
        problem: Why it cannot be read; None: it can.
        num_bytes: What was read of its first shard; 0 where it has none.
        seconds: How long that took.
    """

    problem: str | None = None
    num_bytes: int = 0
    seconds: float = 0.0


@contextmanager
def marked(url: str, mark: str) -> Iterator[None]:
    """Leave an object in a storage for the nodes to find, for the length of a with block; nothing stays behind.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        missing = within(MARK_SECONDS, lambda: _leave_mark(url, mark))
    except TimeoutError as error:
        raise StorageError(f"{url}: hangs: nothing was written within {MARK_SECONDS:g} s") from error
    try:
        yield
    finally:
        with suppress(StorageError, TimeoutError):
            within(MARK_SECONDS, lambda: _remove_mark(url, mark, missing))


def _leave_mark(url: str, mark: str) -> list[Path]:
    """Write the object and return the folders that had to be made for it."""
    storage = open_storage(url, patience_seconds=PATIENCE_SECONDS)
    path = storage.local_path(FOLDER)
    missing = [] if path is None else [folder for folder in path.parents if not folder.exists()]
    try:
        storage.put(f"{FOLDER}/{mark}/marker", MARKER)
    except StorageError:
        _remove_folders(missing)
        raise
    return missing


def _remove_mark(url: str, mark: str, made: list[Path]) -> None:
    open_storage(url, patience_seconds=PATIENCE_SECONDS).delete_prefix(f"{FOLDER}/{mark}/")
    _remove_folders(made)


def _remove_folders(innermost_first: list[Path]) -> None:
    for folder in innermost_first:
        with suppress(OSError):
            folder.rmdir()


def look_at_runs(url: str, mark: str) -> RunsFound:
    """Use a storage as a run does, below the mark that the one who asks has left there."""
    name = f"{os.getpid()}-{time.monotonic_ns()}"
    try:
        storage = open_storage(url, patience_seconds=PATIENCE_SECONDS).child(f"{FOLDER}/{mark}")
        return _looked_at_runs(storage, url, name)
    except StorageError as error:
        return RunsFound(str(error))


def _looked_at_runs(storage: Storage, url: str, name: str) -> RunsFound:
    data = os.urandom(PROBE_BYTES)
    try:
        if storage.get("marker") != MARKER:
            return RunsFound(f"{url} gives other bytes than were written there")
    except ObjectNotFoundError:
        return RunsFound(f"{url} does not show this node what another node has written there: it is not shared")
    try:
        began = time.monotonic()
        storage.put(name, data)
        written = time.monotonic()
        same = storage.get(name) == data
        read = time.monotonic()
    finally:
        storage.delete(name)
    if not same:
        return RunsFound(f"{url} gives other bytes than were written there")
    if storage.exists(name):
        return RunsFound(f"{url} still shows an object that was deleted")
    honours = storage.honours_conditions(f"{name}-condition")
    return RunsFound(None, len(data) / (written - began), len(data) / (read - written), honours)


def look_at_data(url: str) -> DataFound:
    """Read a dataset's manifest and, for some seconds, its first shard."""
    try:
        storage = open_storage(url, patience_seconds=PATIENCE_SECONDS)
        shards = Manifest.read(storage).shards
        if not shards:
            return DataFound()
        began, num_bytes = time.monotonic(), 0
        with storage.open_stream(shards[0].tar_key) as stream:
            while time.monotonic() - began < READ_SECONDS and num_bytes < 4 * PROBE_BYTES:
                block = stream.read(2**20)
                if not block:
                    break
                num_bytes += len(block)
        return DataFound(None, num_bytes, max(time.monotonic() - began, 1e-6))
    except UserError as error:
        return DataFound(str(error))


def judge_runs(place: str, found: RunsFound, url: str) -> list[Line]:
    """Judge the storage of runs as a node sees it."""
    if found.problem is not None:
        return [Line(place, RUNS_SUBJECT, "fail", found.problem, CREDENTIALS_CURE)]
    slowest = min(found.write_bytes_per_second, found.read_bytes_per_second)
    writes, reads = format_bytes(found.write_bytes_per_second), format_bytes(found.read_bytes_per_second)
    seen = f"{url}: writes {writes}/s, reads {reads}/s"
    measured = {
        "write_bytes_per_second": found.write_bytes_per_second,
        "read_bytes_per_second": found.read_bytes_per_second,
    }
    if slowest < SLOW_BYTES_PER_SECOND:
        cure = "checkpoints take long (465 MB for yolov7): use storage near the nodes, or save less often"
        lines = [Line(place, RUNS_SUBJECT, "warn", seen, cure, measured)]
    else:
        lines = [Line(place, RUNS_SUBJECT, "ok", seen, measured=measured)]
    if found.honours_conditions:
        return [*lines, Line(place, CONDITION_SUBJECT, "ok", "the second writer of an object is refused")]
    cure = "never start one run from two places at the same moment, or use storage that honours If-None-Match"
    return [*lines, Line(place, CONDITION_SUBJECT, "warn", "ignored: the second writer of an object wins", cure)]


def judge_data(place: str, found: DataFound, subject: str, url: str) -> Line:
    """Judge a dataset as a node sees it."""
    if found.problem is not None:
        return Line(place, subject, "fail", found.problem, CREDENTIALS_CURE)
    if found.num_bytes == 0:
        return Line(place, subject, "fail", f"{url}: holds no shard", "build it from images: yolofleet data shard")
    if found.num_bytes < LEAST_TELLING_BYTES and found.seconds < READ_SECONDS:
        return Line(place, subject, "ok", f"{url}: can be read; its {format_bytes(found.num_bytes)} tell no speed")
    reached = found.num_bytes / found.seconds
    seen = f"{url}: reads {format_bytes(reached)}/s"
    measured = {"read_bytes_per_second": reached}
    if reached < SLOW_BYTES_PER_SECOND:
        cure = "the first epoch will wait for data: use storage near the nodes, or a shard cache that keeps it all"
        return Line(place, subject, "warn", seen, cure, measured)
    return Line(place, subject, "ok", seen, measured=measured)
