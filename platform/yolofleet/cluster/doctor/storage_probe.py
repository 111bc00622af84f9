"""Storage as a node sees it: the storage of runs is written, read and cleared, datasets are read, both are timed.

Before the nodes are asked, the doctor writes a marker: a node that does not see it has a folder of its own under the
same name, and the runs of such a cluster would fall apart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from yolofleet.cluster.doctor.finding import Finding
from yolofleet.core.background import within
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError
from yolofleet.data.manifest import Manifest
from yolofleet.storage import ObjectNotFoundError, Storage, StorageError, open_storage

RUNS_SUBJECT = "storage of runs"
CONDITION_SUBJECT = "conditional put"
MARKER_SUBJECT = "directory marker"
FOLDER = "_doctor"
"""No run can have this name."""
MARKER = b"written by the one that asks"
PROBE_BYTES = 16 * 2**20
READ_SECONDS = 5.0
LEAST_TELLING_BYTES = 4 * 2**20
"""Of a smaller read most of the time goes into opening it."""
PATIENCE_SECONDS = 6.0
"""How long requests to a storage that does not answer are retried."""
MARKER_SECONDS = 60.0
SLOW_BYTES_PER_SECOND = 10e6
CREDENTIALS_CURE = (
    "give every node the credentials and the endpoint in its environment, and use storage that all nodes reach "
    "(s3://, or a folder that is mounted on all of them)"
)


@dataclass(frozen=True)
class RunsFound:
    """What a node found at the storage of runs."""

    problem: str | None = None
    """What did not work; None: all of it did."""
    write_bytes_per_second: float = 0.0
    """Speed of one object's upload."""
    read_bytes_per_second: float = 0.0
    """Speed of its download."""
    honours_conditions: bool = True
    """Whether the second of two conditional puts was refused."""
    holds_markers: bool = True
    """Whether objects are still seen below a directory marker."""


@dataclass(frozen=True)
class DataFound:
    """What a node found at a dataset."""

    problem: str | None = None
    """Why it cannot be read; None: it can."""
    num_bytes: int = 0
    """How much was read of its first shard; 0 where it has none."""
    seconds: float = 0.0
    """How long that took."""


@contextmanager
def shared_marker(url: str, name: str) -> Iterator[None]:
    """Write a marker for the nodes to find, for the length of a with block; nothing stays behind.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        made = within(MARKER_SECONDS, lambda: _write_marker(url, name))
    except TimeoutError as error:
        raise StorageError(f"{url}: does not respond: nothing was written within {MARKER_SECONDS:g} s") from error
    try:
        yield
    finally:
        with suppress(StorageError, TimeoutError):
            within(MARKER_SECONDS, lambda: _remove_marker(url, name, made))


def _write_marker(url: str, name: str) -> list[Path]:
    """Write the marker and return the folders that had to be made for it, the innermost first."""
    storage = open_storage(url, patience_seconds=PATIENCE_SECONDS)
    path = storage.local_path(FOLDER)
    missing = [] if path is None else [folder for folder in path.parents if not folder.exists()]
    try:
        storage.put(f"{FOLDER}/{name}/marker", MARKER)
    except StorageError:
        _remove_folders(missing)
        raise
    return missing


def _remove_marker(url: str, name: str, made: list[Path]) -> None:
    open_storage(url, patience_seconds=PATIENCE_SECONDS).delete_prefix(f"{FOLDER}/{name}/")
    _remove_folders(made)


def _remove_folders(innermost_first: list[Path]) -> None:
    for folder in innermost_first:
        with suppress(OSError):
            folder.rmdir()


def probe_runs(url: str, marker: str) -> RunsFound:
    """Use a storage as a run does, below the marker that the doctor has written."""
    try:
        storage = open_storage(url, patience_seconds=PATIENCE_SECONDS).child(f"{FOLDER}/{marker}")
        return _use_storage(storage, url, f"{os.getpid()}-{time.monotonic_ns()}")
    except StorageError as error:
        return RunsFound(str(error))


def _use_storage(storage: Storage, url: str, name: str) -> RunsFound:
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
        is_same = storage.get(name) == data
        read = time.monotonic()
    finally:
        storage.delete(name)
    if not is_same:
        return RunsFound(f"{url} gives other bytes than were written there")
    if storage.exists(name):
        return RunsFound(f"{url} still shows an object that was deleted")
    return RunsFound(
        write_bytes_per_second=len(data) / (written - began),
        read_bytes_per_second=len(data) / (read - written),
        honours_conditions=storage.honours_conditions(f"{name}-condition"),
        holds_markers=storage.holds_markers(f"{name}-marker"),
    )


def probe_data(url: str) -> DataFound:
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


def check_runs(node: str, found: RunsFound, url: str) -> list[Finding]:
    """Check the storage of runs by what a node found there."""
    if found.problem is not None:
        return [Finding(node, RUNS_SUBJECT, "fail", found.problem, CREDENTIALS_CURE)]
    writes, reads = found.write_bytes_per_second, found.read_bytes_per_second
    measured = {"write_bytes_per_second": writes, "read_bytes_per_second": reads}
    is_slow = min(writes, reads) < SLOW_BYTES_PER_SECOND
    slow = "checkpoints take long (465 MB for yolov7): use storage near the nodes, or save less often"
    hidden = (
        "let no other tool make folders in it (a console, `aws s3api put-object --key NAME/`), or use another server"
    )
    ignored = "never start one run from two hosts at the same moment, or use storage that supports If-None-Match"
    return [
        Finding(
            node,
            RUNS_SUBJECT,
            "warn" if is_slow else "ok",
            f"{url}: writes {format_bytes(writes)}/s, reads {format_bytes(reads)}/s",
            slow if is_slow else None,
            measured,
        ),
        Finding(node, CONDITION_SUBJECT, "ok", "the second writer of an object is refused")
        if found.honours_conditions
        else Finding(node, CONDITION_SUBJECT, "warn", "ignored: the second writer of an object wins", ignored),
        Finding(node, MARKER_SUBJECT, "ok", "objects below a directory marker are seen")
        if found.holds_markers
        else Finding(node, MARKER_SUBJECT, "warn", "an empty object NAME/ hides all objects below NAME/", hidden),
    ]


def check_data(node: str, found: DataFound, subject: str, url: str) -> Finding:
    """Check a dataset by what a node found there."""
    finding = partial(Finding, node, subject)
    if found.problem is not None:
        return finding("fail", found.problem, CREDENTIALS_CURE)
    if found.num_bytes == 0:
        return finding("fail", f"{url}: holds no shard", "build it from images: yolofleet data shard")
    if found.num_bytes < LEAST_TELLING_BYTES and found.seconds < READ_SECONDS:
        size = format_bytes(found.num_bytes)
        return finding("ok", f"{url}: can be read; its {size} are too few to measure a speed")
    reached = found.num_bytes / found.seconds
    seen, measured = f"{url}: reads {format_bytes(reached)}/s", {"read_bytes_per_second": reached}
    if reached < SLOW_BYTES_PER_SECOND:
        cure = "the first epoch will wait for data: use storage near the nodes, or a shard cache that holds all of it"
        return finding("warn", seen, cure, measured)
    return finding("ok", seen, measured=measured)
