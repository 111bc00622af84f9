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

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from yolofleet.core.errors import UserError, WorkError
from yolofleet.storage.lock_record import Holder, Token, key_of, newest_holder, read_holder
from yolofleet.storage.objects import Storage, StorageError

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
        ours = read_holder(self._storage, self.token.number)
        if (
            ours is not None
            and ours.mark == self.token.mark
            and not self._storage.exists(key_of(self.token.number + 1))
        ):
            return
        newest = newest_holder(self._storage)
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
                self._storage.put(key_of(self._holder.number), self._holder.encoded())
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
            self._storage.put(key_of(self._holder.number), replace(self._holder, released=True).encoded())
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
    before = newest_holder(storage)
    if before is not None and not before.released:
        before = _outlive(storage, before, told)
    holder = Holder.here(1 if before is None else before.number + 1, lease_seconds)
    written = storage.put_if_absent(key_of(holder.number), holder.encoded())
    if written and storage.local_path(key_of(1)) is None:
        time.sleep(SETTLE_SECONDS)  # the endpoint may have ignored the condition
    now = newest_holder(storage)
    if now is None or now.token != holder.token:
        raise _refusal(storage, now if now is not None else holder)
    for number in range(max(1, holder.number - 3), holder.number - 1):
        storage.delete(key_of(number))
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
        now = newest_holder(storage)
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
