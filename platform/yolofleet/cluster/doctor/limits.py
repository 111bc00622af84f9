"""Shared memory and open files: what Ray, NCCL and the loader take from the system, and what it gives."""

from __future__ import annotations

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from yolofleet.cluster.doctor.amounts import readable
from yolofleet.cluster.doctor.line import Line
from yolofleet.cluster.manifest_sizes import COLLECTIVE_BYTES

MEMORY_SUBJECT = "shared memory"
FILES_SUBJECT = "open files"
SHARED_MEMORY = Path("/dev/shm")
LEAST_FREE_BYTES = 64 * 2**20
"""For each worker; with less NCCL cannot set up its channels within a node (a container's default is 64 MiB in all)."""
LEAST_FILES = 1024
ENOUGH_FILES = 8192


@dataclass(frozen=True)
class Limits:
    """What the system gives a process.

    Attributes:
        shared_memory_bytes: Size of ``/dev/shm``.
        shared_memory_free_bytes: What is free of it.
        open_files: Files and connections that a process may have open.
    """

    shared_memory_bytes: int
    shared_memory_free_bytes: int
    open_files: int


def look_at_limits() -> Limits:
    """Return this process's limits."""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return Limits(usage.total, usage.free, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def judge_shared_memory(place: str, found: Limits, object_store_bytes: float, num_workers: int) -> Line:
    """Judge a node's shared memory.

    Args:
        place: The node's name.
        found: Its limits.
        object_store_bytes: What Ray's object store may take of it.
        num_workers: Training workers that find room on the node.
    """
    needed = object_store_bytes + num_workers * COLLECTIVE_BYTES
    least = num_workers * LEAST_FREE_BYTES
    size, free = found.shared_memory_bytes, found.shared_memory_free_bytes
    seen = f"{readable(size)}, {readable(free)} free"
    measured = {"bytes": float(size), "free_bytes": float(free)}
    larger = f"give the container {readable(needed)} (--shm-size, or an emptyDir with medium: Memory at /dev/shm)"
    if free < least:
        seen += f"; {num_workers} workers need {readable(least)} at the least"
        return Line(place, MEMORY_SUBJECT, "fail", seen, larger, measured)
    if size < object_store_bytes:
        seen += f"; Ray's object store of {readable(object_store_bytes)} goes to the disk"
        return Line(place, MEMORY_SUBJECT, "warn", seen, f"{larger}, or start Ray with less object memory", measured)
    if size < needed:
        seen += f"; Ray and {num_workers} workers may take {readable(needed)}"
        return Line(place, MEMORY_SUBJECT, "warn", seen, larger, measured)
    return Line(place, MEMORY_SUBJECT, "ok", seen, measured=measured)


def judge_open_files(place: str, found: Limits) -> Line:
    """Judge how many files a process may have open; Ray opens a connection to every other process."""
    limit = found.open_files
    unlimited = limit == resource.RLIM_INFINITY
    seen = "no limit" if unlimited else f"{limit:,}"
    measured = {} if unlimited else {"files": float(limit)}
    if unlimited or limit >= ENOUGH_FILES:
        return Line(place, FILES_SUBJECT, "ok", seen, measured=measured)
    cure = "ulimit -n 65536 before ray start (LimitNOFILE= in a unit, --ulimit nofile=65536 for a container)"
    return Line(place, FILES_SUBJECT, "fail" if limit < LEAST_FILES else "warn", seen, cure, measured)
