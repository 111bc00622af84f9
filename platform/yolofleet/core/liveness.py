"""Whether the process that holds a lock still lives: every lock of the platform asks here.

On its own host the end of a process is seen at once. From any other host a process counts as dead when its sign of life
(its count of renewals, say) has not changed for a whole lease. Who waits measures that by its own clock: no clock of
one host is ever compared with that of another.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LEASE_SECONDS = 60.0
"""Time without a sign of life after which others may take a lock over."""
RENEWALS_PER_LEASE = 4
"""A holder renews this often, so that one or two renewals may fail."""
NOT_RUNNING = -1


@dataclass(frozen=True)
class ProcessId:
    """A process, distinguished from all others of every host and time."""

    host: str
    """Name of its host, for messages."""
    process_table: str
    """Boot and process namespace of the host: containers share a host's name, but never these."""
    pid: int
    """Its number in that table."""
    start_ticks: int
    """When it began, in ticks since boot: numbers are used again."""

    @staticmethod
    def current() -> ProcessId:
        """Return this process."""
        return ProcessId(socket.gethostname(), _process_table(), os.getpid(), _start_ticks(os.getpid()))

    def is_visible(self) -> bool:
        """Return whether this process can see whether that one runs."""
        return self.process_table == _process_table()

    def has_ended(self) -> bool:
        """Return whether it is known to run no more; always False where it is not visible."""
        return self.is_visible() and _start_ticks(self.pid) != self.start_ticks


class LeaseWatch:
    """Measures how long holders of a lock have given no sign of life.

    Args:
        clock: Monotonic seconds of this process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_signs: dict[str, tuple[object, float]] = {}

    def has_expired(self, holder: str, sign_of_life: object, lease_seconds: float = LEASE_SECONDS) -> bool:
        """Return whether a holder's lease is over; the first look at a holder begins it.

        Args:
            holder: Identity of the holder.
            sign_of_life: What the holder changes when it renews its lock, as it reads now.
            lease_seconds: The lease.
        """
        before, since = self._last_signs.get(holder, (None, 0.0))
        if sign_of_life != before:
            since = self._clock()
            self._last_signs[holder] = (sign_of_life, since)
        return self._clock() - since > lease_seconds


@cache
def _process_table() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {uuid.uuid4().hex}"  # without /proc no other process is visible, and its lease decides


def _start_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):  # somebody wrote a number that no process has
        return NOT_RUNNING
    return NOT_RUNNING if fields[0] in "ZX" else int(fields[19])  # a zombie does not run


def describe_start(command: list[str]) -> dict[str, str]:
    """Return who starts a work, where, with which command, and the commit of the folder that it is started in."""
    origin = {"user": user_name(), "host": socket.gethostname(), "command": shlex.join(command)}
    return origin | _git_position(Path.cwd())


def _git_position(folder: Path) -> dict[str, str]:
    """Return branch and commit of a working tree, as its files name them; {} outside of one."""
    try:
        git = next(path / ".git" for path in (folder, *folder.parents) if (path / ".git").exists())
        if git.is_file():  # a worktree: it names its own folder
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        reference = head.removeprefix("ref: ")
        if reference == head:
            return {"commit": head}
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        position = {"branch": reference.removeprefix("refs/heads/")}
        if (common / reference).is_file():
            return position | {"commit": (common / reference).read_text().strip()}
        for line in (common / "packed-refs").read_text().splitlines():
            if line.endswith(f" {reference}"):
                position["commit"] = line.split()[0]
        return position
    except (OSError, ValueError, StopIteration):
        return {}


def user_name() -> str:
    """Return whose process this is."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return f"user {os.getuid()}"
