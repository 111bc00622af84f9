"""The disk of a node's shard cache: free space, file system and speed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from yolofleet.cluster.doctor.finding import Finding
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.file_names import SHARD_CACHE_VARIABLE
from yolofleet.core.local_files import local_path

SUBJECT = "shard cache"
PROBE_BYTES = 32 * 2**20
SLOW_BYTES_PER_SECOND = 50e6
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
NETWORK_FILE_SYSTEMS = frozenset(
    ["nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "beegfs", "gpfs", "fuse.sshfs", "9p", "glusterfs"]
)


@dataclass(frozen=True)
class Disk:
    """The disk that a folder lies on."""

    free_bytes: int
    """Its free space."""
    held_bytes: int
    """What the folder holds already."""
    file_system: str
    """Its kind, e.g. ext4."""
    bytes_per_second: float | None = None
    """How fast it takes bytes, down to the medium; None where nothing could be written."""
    problem: str | None = None
    """Why nothing could be written."""
    path: str | None = None
    """The folder that the node's environment names in place of the job's; None without one."""


@dataclass(frozen=True)
class CacheNeed:
    """What a job wants to keep on a node."""

    path: str
    most_bytes: int
    """What it may hold at most."""
    data_bytes: int
    """All shards of the training and the validation set."""
    largest_bytes: int
    """The largest shard."""

    @property
    def wanted_bytes(self) -> int:
        """The size with which no shard is fetched twice."""
        return min(self.most_bytes, self.data_bytes)


def probe_disk(path: str) -> Disk:
    """Write and remove a file where the folder is, or would be made; leaves nothing behind.

    Args:
        path: The job's folder; the one that this node's environment names comes before it.
    """
    own = os.environ.get(SHARD_CACHE_VARIABLE) or None
    folder = local_path(own or path)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    usage = shutil.disk_usage(existing)
    held = sum(map(_size, folder.glob("*.tar"))) if folder.is_dir() else 0
    disk = partial(Disk, usage.free, held, file_system_of(existing, Path("/proc/mounts").read_text()), path=own)
    if not existing.is_dir():
        return disk(problem=f"{existing} is a file, not a folder")
    try:
        return disk(bytes_per_second=PROBE_BYTES / _seconds_to_write(existing))
    except OSError as error:
        return disk(problem=f"{existing}: {error.strerror}")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # a run has evicted it since
        return 0


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
    """Return the kind of file system that an absolute path lies on, by the text of ``/proc/mounts``."""
    real = path.resolve()
    kind, depth = "unknown", -1
    for row in mounts.splitlines():
        _, mounted_at, row_kind, *_ = row.split(" ")
        mount = Path(mounted_at.replace("\\040", " "))
        if real.is_relative_to(mount) and len(mount.parts) >= depth:  # a later mount at the same path hides the earlier
            kind, depth = row_kind, len(mount.parts)
    return kind


def check_disk(node: str, found: Disk, need: CacheNeed) -> Finding:
    """Compare a node's disk with what the job wants to keep there."""
    measured = {"free_bytes": float(found.free_bytes)}
    finding = partial(Finding, node, SUBJECT, measured=measured)
    if found.problem is not None or found.bytes_per_second is None:
        where = "data.cache.path" if found.path is None else f"{SHARD_CACHE_VARIABLE} of the node"
        cure = f"set {where} to a folder on a local disk that the node's user may write"
        return finding("fail", f"{found.path or need.path}: {found.problem}", cure)
    measured["bytes_per_second"] = found.bytes_per_second
    usable_bytes = min(need.most_bytes, found.free_bytes + found.held_bytes)
    free, speed = format_bytes(found.free_bytes), format_bytes(found.bytes_per_second)
    seen = f"{found.path or need.path} ({found.file_system}): {free} free, writes {speed}/s"
    larger = f"use a disk with {format_bytes(need.wanted_bytes)} free (data.cache.path)"
    if need.largest_bytes > usable_bytes:
        cure = f"{larger}, allow more (data.cache.max_bytes), or build smaller shards"
        return finding("fail", f"{seen}; the largest shard alone has {format_bytes(need.largest_bytes)}", cure)
    if need.wanted_bytes > usable_bytes:
        cure = f"{larger}; otherwise shards are downloaded again and again"
        return finding("warn", f"{seen}; the job wants to keep {format_bytes(need.wanted_bytes)}", cure)
    if found.file_system in MEMORY_FILE_SYSTEMS:
        return finding("warn", f"{seen}; it takes memory from training", "set data.cache.path to a folder on a disk")
    if found.file_system in NETWORK_FILE_SYSTEMS:
        cure = "set data.cache.path to a folder on a local disk of the node"
        return finding("warn", f"{seen}; it is on a network disk", cure)
    if found.bytes_per_second < SLOW_BYTES_PER_SECOND:
        return finding("warn", f"{seen}; it is slow", "use a faster disk for data.cache.path")
    return finding("ok", seen)
