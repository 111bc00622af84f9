"""One holder at a time of a place in storage, and no writing by one that has lost it.

Holders are numbered. Each has an object of its own, ``lock/00000001.json``, ``lock/00000002.json``, ...; the highest
number holds the place. An object is created by a conditional put, so of two that want the same number one gets it; on
endpoints that ignore the condition both read it again after a moment and the one whose object was overwritten yields.
From then on only its owner rewrites it: to count a renewal, or to say that the place is free again.

A lock is taken over when its process is known to be dead (it ran on this host) or when its count of renewals stood
still for a whole lease, by the watcher's own clock: no clock of one host is ever compared with that of another.
Whoever writes below the place asks its `Fence` first, which looks for a higher number. What was asked for just before a
takeover may still arrive after it, for as long as one request is tried (far less than a lease).
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from yolofleet.errors import UserError, WorkError
from yolofleet.storage.objects import ObjectNotFoundError, Storage, StorageError

FOLDER = "lock"
LEASE_SECONDS = 60.0
SETTLE_SECONDS = 0.5
"""After this long every racing put of the same object has landed."""
RENEWALS_PER_LEASE = 4
POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


class PlaceHeldError(UserError):
    """Someone else holds the place and is alive."""


class LockLostError(WorkError):
    """The place was taken over; this process must write no more."""


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


class Fence:
    """Asks, before anything is written, whether the token's holder still holds the place."""

    def __init__(self, storage: Storage, token: Token) -> None:
        self._storage = storage
        self.token = token

    def check(self) -> None:
        """Return if the place is still held.

        Raises:
            LockLostError: Someone else holds it.
            StorageError: The storage does not answer.
        """
        ours = _read(self._storage, self.token.number)
        if ours is not None and ours.mark == self.token.mark and not self._storage.exists(_key(self.token.number + 1)):
            return
        newest = _newest(self._storage)
        taker = newest.described() if newest is not None else "someone who removed the lock"
        raise LockLostError(f"{self._storage.url}: was taken over by {taker}; this process writes nothing more there")


class Lock:
    """A place that is held, and renewed in the background, until `release`."""

    def __init__(self, storage: Storage, holder: Holder) -> None:
        self._storage = storage
        self._holder = holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, name="run-lock", daemon=True)
        self._thread.start()

    @property
    def token(self) -> Token:
        """The proof for those who write in the holder's name."""
        return self._holder.token

    @property
    def fence(self) -> Fence:
        """What to ask before writing."""
        return Fence(self._storage, self.token)

    def _renew_regularly(self) -> None:
        while not self._ended.wait(self._holder.lease_seconds / RENEWALS_PER_LEASE):
            try:
                self.fence.check()
                self._holder = replace(self._holder, renewals=self._holder.renewals + 1)
                _write(self._storage, self._holder)
            except LockLostError as error:
                logger.warning("%s", error)
                return
            except StorageError as error:
                logger.warning("the lock could not be renewed: %s", error)

    def release(self) -> None:
        """Give the place back, if it is still held."""
        self._ended.set()
        self._thread.join()
        try:
            self.fence.check()
            _write(self._storage, replace(self._holder, released=True))
        except LockLostError:
            return
        except StorageError as error:
            logger.warning("the lock could not be given back, others will wait for its lease to end: %s", error)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def hold(
    storage: Storage,
    *,
    told: Callable[[str], None] = logger.warning,
    lease_seconds: float = LEASE_SECONDS,
) -> Lock:
    """Take a place, or wait for the lease of a holder that no longer renews it.

    Args:
        storage: The storage whose root is the place.
        told: Called with a line for the user when a lock is taken over, or waited for.
        lease_seconds: Lease of the new lock.

    Raises:
        PlaceHeldError: A living holder has it: who, since when, and the cure.
        StorageError: The storage cannot be read or written.
    """
    before = _newest(storage)
    if before is not None and not before.released:
        before = _outlive(storage, before, told)
    holder = Holder(
        number=1 if before is None else before.number + 1,
        mark=uuid.uuid4().hex,
        host=socket.gethostname(),
        place=_place(),
        process=os.getpid(),
        process_began=_process_began(os.getpid()),
        user=_user(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        lease_seconds=lease_seconds,
    )
    written = storage.put_if_absent(_key(holder.number), _encoded(holder))
    if written and storage.local_path(_key(1)) is None:
        time.sleep(SETTLE_SECONDS)  # the endpoint may have ignored the condition
    now = _newest(storage)
    if now is None or now.token != holder.token:
        raise _refusal(storage, now if now is not None else holder)
    for number in range(max(1, holder.number - 3), holder.number - 1):
        storage.delete(_key(number))
    return Lock(storage, holder)


def _outlive(storage: Storage, holder: Holder, told: Callable[[str], None]) -> Holder | None:
    """Return whom to succeed, once that holder is known to be gone; raise as soon as one is known to be alive."""
    if holder.ran_here():
        if holder.is_running():
            raise _refusal(storage, holder)
        told(f"taking over from {holder.described()}: that process has ended")
        return holder
    told(
        f"{storage.url} is held by {holder.described()}; waiting up to {holder.lease_seconds:g} s for a sign of life, "
        "then taking over"
    )
    end = time.monotonic() + holder.lease_seconds
    while time.monotonic() < end:
        time.sleep(min(POLL_SECONDS, holder.lease_seconds / 10))
        now = _newest(storage)
        if now is None or now.token != holder.token or now.renewals != holder.renewals:
            if now is None or now.released:
                return now
            raise _refusal(storage, now)
    told(f"taking over from {holder.described()}: it gave no sign of life for {holder.lease_seconds:g} s")
    return holder


def _refusal(storage: Storage, holder: Holder) -> PlaceHeldError:
    return PlaceHeldError(
        f"{storage.url} is in use by {holder.described()}, which is alive; wait until it has ended, stop it "
        f"(kill {holder.process} on {holder.host}), or use another name"
    )


def _key(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def _newest(storage: Storage) -> Holder | None:
    names = (re.fullmatch(rf"{FOLDER}/(\d+)\.json", entry.key) for entry in storage.list(f"{FOLDER}/"))
    numbers = sorted(int(match[1]) for match in names if match)
    return _read(storage, numbers[-1]) if numbers else None


def _read(storage: Storage, number: int) -> Holder | None:
    try:
        data = storage.get(_key(number))
    except ObjectNotFoundError:
        return None
    try:
        document: dict[str, Any] = json.loads(data)
        return Holder(**document)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{storage.url}/{_key(number)}: is damaged ({error}); remove it if nobody uses {storage.url}"
        ) from error


def _write(storage: Storage, holder: Holder) -> None:
    storage.put(_key(holder.number), _encoded(holder))


def _encoded(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


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
