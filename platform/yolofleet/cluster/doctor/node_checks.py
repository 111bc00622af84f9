"""What a node's system gives: its clock, shared memory, open files, and the versions installed there.

Nothing in a run compares clocks of two hosts to decide what it does; but events of several hosts are sorted by their
times, and S3 and TLS refuse a clock that is minutes off.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from time import time

from yolofleet.cluster.bundle import installed_versions
from yolofleet.cluster.doctor.finding import Finding
from yolofleet.cluster.manifest_sizes import COLLECTIVE_BYTES
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.text import plural

CLOCK_SUBJECT = "clock"
WARN_SECONDS = 1.0
FAIL_SECONDS = 30.0
MEMORY_SUBJECT = "shared memory"
SHARED_MEMORY = Path("/dev/shm")
LEAST_FREE_BYTES = 64 * 2**20
"""For each worker; with less NCCL cannot set up its channels within a node (a container's default is 64 MiB in all)."""
FILES_SUBJECT = "open files"
LEAST_FILES = 1024
ENOUGH_FILES = 8192
VERSIONS_SUBJECT = "versions"
SHOWN_VERSIONS = ("python", "ray", "torch", "mlflow", "yolofleet")


@dataclass(frozen=True)
class ClockOffset:
    """How far another clock is ahead."""

    seconds: float
    """The best estimate; negative where it is behind."""
    uncertainty_seconds: float
    """The most by which the estimate may be wrong."""

    @classmethod
    def from_moment(cls, before: float, theirs: float, after: float) -> ClockOffset:
        """Return the offset of a clock that said ``theirs`` between two moments of this one, all in seconds."""
        return cls(theirs - (before + after) / 2, (after - before) / 2)

    @property
    def certain_seconds(self) -> float:
        """How far apart the clocks are at least."""
        return max(0.0, abs(self.seconds) - self.uncertainty_seconds)


def measure_clock(ask: Callable[[], float], now: Callable[[], float] = time) -> ClockOffset:
    """Ask another clock three times and return the offset by the quickest answer."""
    offsets = []
    for _ in range(3):
        before = now()
        theirs = ask()
        offsets.append(ClockOffset.from_moment(before, theirs, now()))
    return min(offsets, key=lambda offset: offset.uncertainty_seconds)


def check_clock(node: str, offset: ClockOffset) -> Finding:
    """Check how far a clock is off for certain: a slow answer does not mean a wrong clock."""
    apart = offset.certain_seconds
    measured = {"offset_seconds": offset.seconds, "uncertainty_seconds": offset.uncertainty_seconds}
    finding = partial(Finding, node, CLOCK_SUBJECT, measured=measured)
    if apart <= WARN_SECONDS:
        return finding("ok", f"within {apart + 2 * offset.uncertainty_seconds:.2g} s")
    side = "ahead of" if offset.seconds > 0 else "behind"
    cure = "run chrony or systemd-timesyncd on the node (in a container: on its host)"
    return finding(
        "fail" if apart > FAIL_SECONDS else "warn", f"at least {apart:.1f} s {side} the machine that asks", cure
    )


@dataclass(frozen=True)
class Limits:
    """What the system gives a process."""

    shared_memory_bytes: int
    """Size of ``/dev/shm``."""
    shared_memory_free_bytes: int
    """Its free space."""
    open_files: int
    """Files and connections that a process may have open."""


def probe_limits() -> Limits:
    """Return this process's limits."""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return Limits(usage.total, usage.free, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def check_shared_memory(node: str, found: Limits, object_store_bytes: float, num_workers: int) -> Finding:
    """Compare a node's shared memory with what Ray and NCCL take of it.

    Args:
        node: The node's name.
        found: Its limits.
        object_store_bytes: What Ray's object store may take.
        num_workers: Training workers that run on the node.
    """
    needed = object_store_bytes + num_workers * COLLECTIVE_BYTES
    least = num_workers * LEAST_FREE_BYTES
    size, free = found.shared_memory_bytes, found.shared_memory_free_bytes
    finding = partial(Finding, node, MEMORY_SUBJECT, measured={"bytes": float(size), "free_bytes": float(free)})
    seen = f"{format_bytes(size)}, {format_bytes(free)} free"
    cure = f"give the container {format_bytes(needed)} (--shm-size, or an emptyDir with medium: Memory at /dev/shm)"
    if free < least:
        workers = plural(num_workers, "worker needs", "workers need")
        return finding("fail", f"{seen}; {workers} {format_bytes(least)} at the least", cure)
    if size < object_store_bytes:
        seen += f"; Ray's object store of {format_bytes(object_store_bytes)} goes to the disk"
        return finding("warn", seen, f"{cure}, or start Ray with less object memory")
    if size < needed:
        return finding("warn", f"{seen}; Ray and {plural(num_workers, 'worker')} may take {format_bytes(needed)}", cure)
    return finding("ok", seen)


def check_open_files(node: str, found: Limits) -> Finding:
    """Check how many files a process may have open; Ray opens a connection to every other process."""
    limit = found.open_files
    if limit == resource.RLIM_INFINITY:
        return Finding(node, FILES_SUBJECT, "ok", "no limit")
    finding = partial(Finding, node, FILES_SUBJECT, measured={"files": float(limit)})
    if limit >= ENOUGH_FILES:
        return finding("ok", f"{limit:,}")
    cure = "ulimit -n 65536 before ray start (LimitNOFILE= in a unit, --ulimit nofile=65536 for a container)"
    return finding("fail" if limit < LEAST_FILES else "warn", f"{limit:,}", cure)


@dataclass(frozen=True)
class Installed:
    """The versions installed on a node."""

    versions: Mapping[str, str]
    """Version of Python and of each pinned package."""
    yolofleet: str | None
    """Version of the installed yolofleet; None where it is not installed."""
    unmet: tuple[str, ...] = ()
    """Requirements of the installed yolofleet that are not met, a line each."""


def probe_versions() -> Installed:
    """Return the versions installed on this machine."""
    try:
        ours = metadata.version("yolofleet")
    except metadata.PackageNotFoundError:
        return Installed(installed_versions(), None)
    return Installed(installed_versions(), ours, tuple(_unmet(metadata.requires("yolofleet") or [])))


def _unmet(requirements: list[str]) -> list[str]:
    from packaging.requirements import Requirement

    unmet = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            unmet.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    return unmet


def check_versions(node: str, found: Installed, expected: Installed) -> Finding:
    """Compare a node's versions with those of the machine that jobs are sent from."""
    finding = partial(Finding, node, VERSIONS_SUBJECT)
    others = [
        f"{name} {found.versions.get(name, 'missing')} ({version} is wanted)"
        for name, version in expected.versions.items()
        if found.versions.get(name) != version
    ]
    if others:
        return finding("fail", "; ".join(others), "use the image, or requirements/run.txt, of this yolofleet")
    if found.unmet:
        return finding("fail", "; ".join(found.unmet), "install requirements/run.txt (make install)")
    if found.yolofleet not in (None, expected.yolofleet):
        cure = "use the image of this version; a job that is submitted brings its own source, train does not"
        return finding("warn", f"yolofleet {found.yolofleet} ({expected.yolofleet} is wanted)", cure)
    versions = {**found.versions, "yolofleet": found.yolofleet or "sent with each job"}
    return finding("ok", ", ".join(f"{name} {versions[name]}" for name in SHOWN_VERSIONS if name in versions))
