"""Whether a node has the versions that jobs are checked with, and whether they belong together.

How far a node's clock is from the one that asks.

Nothing in a run compares clocks of two hosts to decide what it does; but events of several hosts are sorted by their
times, and S3 and TLS refuse a clock that is minutes off.

Shared memory and open files: what Ray, NCCL and the loader take from the system, and what it gives.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import time

from yolofleet.cluster.bundle import installed_versions
from yolofleet.cluster.doctor.finding import Line, Verdict
from yolofleet.cluster.manifest_sizes import COLLECTIVE_BYTES
from yolofleet.core.byte_sizes import format_bytes

CLOCK_SUBJECT = "clock"
WARN_SECONDS = 1.0
FAIL_SECONDS = 30.0
CURE = "run chrony or systemd-timesyncd on the node (in a container: on its host)"


@dataclass(frozen=True)
class ClockOffset:
    """How far another clock is ahead.

    Attributes:
        seconds: The best estimate; negative where it is behind.
        uncertainty_seconds: The most by which the estimate may be wrong.
    """

    seconds: float
    uncertainty_seconds: float

    @classmethod
    def from_moment(cls, before: float, theirs: float, after: float) -> ClockOffset:
        """Return the offset of a clock that said ``theirs`` between two moments of this one, all in seconds."""
        return cls(theirs - (before + after) / 2, (after - before) / 2)

    @property
    def certain_seconds(self) -> float:
        """How far apart the clocks are at least."""
        return max(0.0, abs(self.seconds) - self.uncertainty_seconds)


def measure_clock(ask: Callable[[], float], tries: int = 3, now: Callable[[], float] = time) -> ClockOffset:
    """Ask another clock a few times and return what the quickest answer tells."""
    found = []
    for _ in range(tries):
        before = now()
        theirs = ask()
        found.append(ClockOffset.from_moment(before, theirs, now()))
    return min(found, key=lambda offset: offset.uncertainty_seconds)


def judge_clock(place: str, offset: ClockOffset) -> Line:
    """Judge by what is certain: a slow answer is no wrong clock."""
    apart = offset.certain_seconds
    measured = {"offset_seconds": offset.seconds, "uncertainty_seconds": offset.uncertainty_seconds}
    if apart <= WARN_SECONDS:
        return Line(
            place, CLOCK_SUBJECT, "ok", f"within {apart + 2 * offset.uncertainty_seconds:.2g} s", measured=measured
        )
    side = "ahead of" if offset.seconds > 0 else "behind"
    verdict: Verdict = "fail" if apart > FAIL_SECONDS else "warn"
    return Line(place, CLOCK_SUBJECT, verdict, f"at least {apart:.1f} s {side} the one that asks", CURE, measured)


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
    seen = f"{format_bytes(size)}, {format_bytes(free)} free"
    measured = {"bytes": float(size), "free_bytes": float(free)}
    larger = f"give the container {format_bytes(needed)} (--shm-size, or an emptyDir with medium: Memory at /dev/shm)"
    if free < least:
        seen += f"; {num_workers} workers need {format_bytes(least)} at the least"
        return Line(place, MEMORY_SUBJECT, "fail", seen, larger, measured)
    if size < object_store_bytes:
        seen += f"; Ray's object store of {format_bytes(object_store_bytes)} goes to the disk"
        return Line(place, MEMORY_SUBJECT, "warn", seen, f"{larger}, or start Ray with less object memory", measured)
    if size < needed:
        seen += f"; Ray and {num_workers} workers may take {format_bytes(needed)}"
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


VERSIONS_SUBJECT = "versions"
SHOWN = ("python", "ray", "torch", "mlflow", "yolofleet")


@dataclass(frozen=True)
class Installed:
    """What a node has.

    Attributes:
        versions: Version of Python and of each pinned package.
        yolofleet: Version of the installed yolofleet; None where it is not installed.
        unmet: What the installed yolofleet requires and does not find, a line each.
    """

    versions: Mapping[str, str]
    yolofleet: str | None
    unmet: tuple[str, ...] = ()


def look_at_versions() -> Installed:
    """Return what this machine has."""
    try:
        ours = metadata.version("yolofleet")
    except metadata.PackageNotFoundError:
        return Installed(installed_versions(), None)
    return Installed(installed_versions(), ours, tuple(_unmet(metadata.requires("yolofleet") or [])))


def _unmet(requirements: list[str]) -> list[str]:
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    return found


def judge_versions(place: str, found: Installed, wanted: Installed) -> Line:
    """Compare a node with the place that jobs are sent from."""
    others = [
        f"{name} {found.versions.get(name, 'missing')} ({version} is wanted)"
        for name, version in wanted.versions.items()
        if found.versions.get(name) != version
    ]
    if others:
        return Line(
            place, VERSIONS_SUBJECT, "fail", "; ".join(others), "use the image, or constraints.txt, of this yolofleet"
        )
    if found.unmet:
        return Line(
            place, VERSIONS_SUBJECT, "fail", "; ".join(found.unmet), "install with constraints.txt (make install)"
        )
    if found.yolofleet not in (None, wanted.yolofleet):
        return Line(
            place, VERSIONS_SUBJECT, "warn", f"yolofleet {found.yolofleet} ({wanted.yolofleet} is wanted)",
            "use the image of this version; a job that is submitted brings its own source, train does not",
        )  # fmt: skip
    all_of_them = {**found.versions, "yolofleet": found.yolofleet or "sent with each job"}
    shown = ", ".join(f"{name} {all_of_them[name]}" for name in SHOWN if name in all_of_them)
    return Line(place, VERSIONS_SUBJECT, "ok", shown)
