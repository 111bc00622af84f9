"""The disk of a node's shard cache: room, kind and speed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from yolofleet.cluster.doctor.finding import Line
from yolofleet.core.byte_sizes import format_bytes

SUBJECT = "shard cache"
PROBE_BYTES = 32 * 2**20
SLOW_BYTES_PER_SECOND = 50e6
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
NETWORK_FILE_SYSTEMS = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "ceph",
    "beegfs",
    "gpfs",
    "fuse.sshfs",
    "9p",
    "glusterfs",
)


@dataclass(frozen=True)
class Disk:
    """What lies under a folder.

    Attributes:
        free_bytes: Room that is free.
        held_bytes: What the folder holds already.
        file_system: Its kind, e.g. ext4.
        bytes_per_second: How fast it takes bytes, down to the medium; None where nothing could be written.
        problem: Why nothing could be written.
    """

    free_bytes: int
    held_bytes: int
    file_system: str
    bytes_per_second: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class CacheNeed:
    """What a job wants to keep on a node.

    Attributes:
        path: Folder of the cache.
        most_bytes: What it may hold at most.
        data_bytes: All shards of the training and the validation set.
        largest_bytes: The largest shard.
    """

    path: str
    most_bytes: int
    data_bytes: int
    largest_bytes: int

    @property
    def wanted_bytes(self) -> int:
        """With so much nothing is fetched twice."""
        return min(self.most_bytes, self.data_bytes)


def look_at_disk(path: str) -> Disk:
    """Write and remove a file where the folder is, or would be made; leaves nothing behind."""
    folder = Path(path).expanduser().absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    usage = shutil.disk_usage(there)
    held = sum(file.stat().st_size for file in folder.glob("*.tar")) if folder.is_dir() else 0
    kind = file_system_of(there, Path("/proc/mounts").read_text())
    if not there.is_dir():
        return Disk(usage.free, held, kind, problem=f"{there} is a file, not a folder")
    try:
        taken = _seconds_to_write(there)
    except OSError as error:
        return Disk(usage.free, held, kind, problem=f"{there}: {error.strerror}")
    return Disk(usage.free, held, kind, PROBE_BYTES / taken)


def _seconds_to_write(folder: Path) -> float:
    block = os.urandom(2**20)
    began = time.monotonic()
    with tempfile.TemporaryFile(dir=folder, prefix="yolofleet-doctor-") as target:
        for _ in range(PROBE_BYTES // len(block)):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
        return max(time.monotonic() - began, 1e-6)


def file_system_of(path: Path, mounts: str) -> str:
    """Return the kind of file system that a path lies on.

    Args:
        path: An absolute path.
        mounts: What ``/proc/mounts`` says.
    """
    real = path.resolve()
    found = ("unknown", -1)
    for row in mounts.splitlines():
        _, mounted_at, kind, *_ = row.split(" ")
        place = Path(mounted_at.replace("\\040", " "))
        if real.is_relative_to(place) and len(place.parts) >= found[1]:  # the last mount at a place hides the others
            found = (kind, len(place.parts))
    return found[0]


def judge_disk(place: str, found: Disk, need: CacheNeed) -> Line:
    """Judge a node's disk by what the job wants to keep there."""
    room = min(need.most_bytes, found.free_bytes + found.held_bytes)
    seen = f"{need.path} ({found.file_system}): {format_bytes(found.free_bytes)} free"
    measured = {"free_bytes": float(found.free_bytes)}
    if found.problem is not None or found.bytes_per_second is None:
        cure = "set data.cache.path to a folder on a local disk that the node's user may write"
        return Line(place, SUBJECT, "fail", f"{need.path}: {found.problem}", cure, measured)
    measured["bytes_per_second"] = found.bytes_per_second
    seen += f", writes {format_bytes(found.bytes_per_second)}/s"
    more = f"use a disk with {format_bytes(need.wanted_bytes)} free (data.cache.path)"
    if need.largest_bytes > room:
        seen += f"; the largest shard alone has {format_bytes(need.largest_bytes)}"
        return Line(
            place, SUBJECT, "fail", seen, f"{more}, allow more (data.cache.max_bytes), or shard smaller", measured
        )
    if need.wanted_bytes > room:
        seen += f"; the job wants to keep {format_bytes(need.wanted_bytes)}"
        return Line(place, SUBJECT, "warn", seen, f"{more}; until then shards are fetched again and again", measured)
    if found.file_system in MEMORY_FILE_SYSTEMS:
        seen += "; it takes memory from training"
        return Line(place, SUBJECT, "warn", seen, "set data.cache.path to a folder on a disk", measured)
    if found.file_system in NETWORK_FILE_SYSTEMS:
        seen += "; it lies behind the network"
        return Line(
            place, SUBJECT, "warn", seen, "set data.cache.path to a folder on a disk of the node's own", measured
        )
    if found.bytes_per_second < SLOW_BYTES_PER_SECOND:
        return Line(place, SUBJECT, "warn", f"{seen}; it is slow", "use a faster disk for data.cache.path", measured)
    return Line(place, SUBJECT, "ok", seen, measured=measured)
