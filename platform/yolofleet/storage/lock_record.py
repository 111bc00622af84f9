"""Who holds a place in storage: what an object of the lock says, and whether that process is alive here."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.storage.objects import ObjectNotFoundError, Storage

FOLDER = "lock"


@dataclass(frozen=True, kw_only=True)
class Token:
    """What proves that a place is held: the holder's number and its own mark. It may be sent to other processes."""

    number: int
    mark: str


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What the lock's object says of its holder.

    Attributes:
        number: Which holder this is, counted from 1.
        mark: What no other holder has.
        host: Name of its host.
        place: Which process table ``process`` counts in: boot and process namespace of the host.
        process: Its process.
        process_began: When that process began, in the host's own ticks: process numbers are used again.
        user: Whose process it is.
        since: When it took the place (its own clock; for people to read only).
        lease_seconds: After this long without a renewal others may take over.
        renewals: How often it has said that it is alive.
        released: Whether it has given the place back.
    """

    number: int
    mark: str
    host: str
    place: str
    process: int
    process_began: int
    user: str
    since: str
    lease_seconds: float
    renewals: int = 0
    released: bool = False

    @staticmethod
    def here(number: int, lease_seconds: float) -> Holder:
        """This process, as the holder of a number."""
        return Holder(
            number=number,
            mark=uuid.uuid4().hex,
            host=socket.gethostname(),
            place=_place(),
            process=os.getpid(),
            process_began=_process_began(os.getpid()),
            user=_user(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            lease_seconds=lease_seconds,
        )

    @property
    def token(self) -> Token:
        """The proof that goes with it."""
        return Token(number=self.number, mark=self.mark)

    def described(self) -> str:
        """Return who it is, for a message."""
        return f"process {self.process} of {self.user} on {self.host}, since {self.since}"

    def ran_here(self) -> bool:
        """Whether its process is one of those that this process can see."""
        return self.place == _place()

    def is_running(self) -> bool:
        """Whether its process is still the one that took the lock; only to be asked where it ran."""
        return _process_began(self.process) == self.process_began

    def encoded(self) -> bytes:
        """Return the object that says so."""
        return json.dumps(asdict(self), indent=1).encode()


def key_of(number: int) -> str:
    """Where the holder of a number has its object."""
    return f"{FOLDER}/{number:08d}.json"


def newest_holder(storage: Storage) -> Holder | None:
    """Return the holder with the highest number; None where there is none."""
    names = (re.fullmatch(rf"{FOLDER}/(\d+)\.json", entry.key) for entry in storage.list(f"{FOLDER}/"))
    numbers = sorted(int(match[1]) for match in names if match)
    return read_holder(storage, numbers[-1]) if numbers else None


def read_holder(storage: Storage, number: int) -> Holder | None:
    """Return the holder of a number; None where there is none.

    Raises:
        UserError: Its object is damaged.
        StorageError: The storage does not answer.
    """
    try:
        data = storage.get(key_of(number))
    except ObjectNotFoundError:
        return None
    try:
        document: dict[str, Any] = json.loads(data)
        return Holder(**document)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{storage.url}/{key_of(number)}: is damaged ({error}); remove it if nobody uses {storage.url}"
        ) from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return f"user {os.getuid()}"


@cache
def _place() -> str:
    """Return what tells this process table from all others: the kernel's boot and the process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {uuid.uuid4().hex}"  # no other process is ever taken for one of this table


def _process_began(process: int) -> int:
    """Return when a process began, in ticks since boot; -1 where there is none (a zombie is none)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])
