"""A lock of a storage: one process at a time holds it, and a process that has lost it writes nothing more.

Holders are numbered, and each has a record of its own, ``lock/00000001.json``, ``lock/00000002.json``, ...; the holder
with the highest number holds the lock. A record is
created by a conditional put, so that only one of two processes that want the same number gets it. On endpoints that
ignore the condition both read the record again after a moment, and the one whose record was overwritten gives up. From
then on only its owner rewrites a record: to count a renewal, or to release the lock.

A lock is taken over when its process is known to have ended, or when its count of renewals has not changed for a whole
lease (`yolofleet.core.liveness`). Before a process writes, its `Fence` looks for a higher number. A request that was
sent just before a takeover may still arrive after it, for as long as one request is tried (far less than a lease).

Promotions cannot use this lock: clients of an MLflow server have no key for the server's storage, and the server itself
offers no conditional put. They use `yolofleet.registry.promotion_lock`, with the same leases.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from yolofleet.core.background import BackgroundLoop, EndLoop
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.liveness import LEASE_SECONDS, RENEWALS_PER_LEASE, LeaseWatch
from yolofleet.storage.lock_record import (
    FOLDER,
    FencingToken,
    LockRecord,
    newest_record,
    read_record,
    record_if_newest,
    record_key,
)
from yolofleet.storage.objects import Storage, StorageError

__all__ = [
    "FOLDER", "Fence", "FencingToken", "Lock", "LockHeldError", "LockLostError", "LockRecord", "forget", "hold",
    "newest_record", "read_record", "record_key",
]  # fmt: skip
SETTLE_SECONDS = 0.5
"""After this long every racing put of the same object has landed."""
POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


class LockHeldError(UserError):
    """Another process, which is alive, holds the lock."""


class LockLostError(WorkError):
    """Another process has taken the lock over; this one must write nothing more."""


class Fence:
    """Checks before each write that the holder of a token still holds the lock."""

    def __init__(self, storage: Storage, token: FencingToken) -> None:
        self._storage = storage
        self.token = token

    def check(self) -> None:
        """Return if the lock is still held.

        Raises:
            LockLostError: Another process holds it.
            StorageError: The storage does not answer.
        """
        if record_if_newest(self._storage, self.token) is not None:
            return
        taker = newest_record(self._storage)
        if taker is None:
            raise LockLostError(
                f"{self._storage.url}: the lock of this process is gone: somebody removed lock/, or the storage lost "
                "or hides it (see yolofleet cluster doctor); this process writes nothing more there"
            )
        raise LockLostError(f"{self._storage.url}: was taken over by {taker}; this process writes nothing more there")


class Lock:
    """A lock that this process holds, and renews in the background, until `release`."""

    def __init__(self, storage: Storage, record: LockRecord) -> None:
        self._storage = storage
        self._record = record
        self.fence = Fence(storage, record.token)
        self._renewals = BackgroundLoop(
            self._renew,
            seconds=record.lease_seconds / RENEWALS_PER_LEASE,
            name="run-lock",
            warning="the lock could not be renewed",
            close_timeout_seconds=record.lease_seconds,
        )
        self._renewals.start()

    @property
    def token(self) -> FencingToken:
        """The token of those who write for this holder."""
        return self._record.token

    def _renew(self) -> None:
        try:
            self.fence.check()
        except LockLostError as error:
            logger.warning("%s", error)
            raise EndLoop from error
        self._record = replace(self._record, renewals=self._record.renewals + 1)
        self._storage.put(record_key(self._record.number), self._record.to_bytes())

    def release(self) -> None:
        """Release the lock, if it is still held; where the storage does not answer, as soon as it does."""
        self._renewals.close()
        try:
            self._record_release()
        except StorageError as error:
            logger.warning("the lock could not be released, others will wait for its lease to end: %s", error)
            if error.transient:
                warning = "the lock can still not be released"
                BackgroundLoop(self._release_late, seconds=POLL_SECONDS, name="late-release", warning=warning).start()

    def _record_release(self) -> None:
        with suppress(LockLostError):
            self.fence.check()
            self._storage.put(record_key(self._record.number), replace(self._record, released=True).to_bytes())

    def _release_late(self) -> None:
        self._record_release()
        raise EndLoop

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def hold(
    storage: Storage, *, notify: Callable[[str], None] = logger.warning, lease_seconds: float = LEASE_SECONDS
) -> Lock:
    """Take the lock of a storage; wait for the lease of a holder that no longer renews it.

    Args:
        storage: The storage; its root holds the lock.
        notify: Called with a line for the user when a lock is taken over, or waited for.
        lease_seconds: Lease of the new lock.

    Raises:
        LockHeldError: A living process holds it: which one, since when, and the cure.
        StorageError: The storage cannot be read or written.
    """
    before = newest_record(storage)
    if before is not None and not before.released:
        before = _wait_for_end(storage, before, notify)
    record = LockRecord.of_this_process(1 if before is None else before.number + 1, lease_seconds)
    written = storage.put_if_absent(record_key(record.number), record.to_bytes())
    if written and storage.local_path(record_key(1)) is None:
        time.sleep(SETTLE_SECONDS)  # the endpoint may have ignored the condition
    now = newest_record(storage)
    if now is None or now.token != record.token:
        raise _lock_held(storage, now or record)
    for number in range(max(1, record.number - 3), record.number - 1):
        storage.delete(record_key(number))
    return Lock(storage, record)


def forget(root: Storage, name: str) -> None:
    """Remove the record of a first holder that has released the lock, and folders that are empty then.

    So a start that was refused leaves nothing. One who takes the lock meanwhile has the next number, and keeps it.

    Args:
        root: The storage of all runs.
        name: The one whose lock it is.
    """
    record = newest_record(root.child(name))
    if record is None or record.number != 1 or not record.released:
        return
    key = f"{name}/{record_key(1)}"
    root.delete(key)
    if (path := root.local_path(key)) is not None:
        with suppress(OSError):  # it holds something
            path.parents[2].rmdir()


def _wait_for_end(storage: Storage, record: LockRecord, notify: Callable[[str], None]) -> LockRecord | None:
    """Return the record to succeed once its holder is known to be gone; raise as soon as a holder is seen alive."""
    if record.process.has_ended():
        notify(f"taking over from {record}: that process has ended")
        return record
    if record.process.is_visible():
        raise _lock_held(storage, record)
    notify(
        f"{storage.url} is held by {record}; waiting up to {record.lease_seconds:g} s for a sign of life, "
        "then taking over"
    )
    watch = LeaseWatch()
    while not watch.has_expired(record.mark, record.renewals, record.lease_seconds):
        time.sleep(min(POLL_SECONDS, record.lease_seconds / 10))
        now = record_if_newest(storage, record.token) or newest_record(storage)
        if now is None or now.released:
            return now
        if now.token != record.token or now.renewals != record.renewals:
            raise _lock_held(storage, now)
    notify(f"taking over from {record}: it gave no sign of life for {record.lease_seconds:g} s")
    return record


def _lock_held(storage: Storage, record: LockRecord) -> LockHeldError:
    return LockHeldError(
        f"{storage.url} is in use by {record}, which is alive; wait until it has ended, stop it "
        f"(kill {record.process.pid} on {record.process.host}), or use another name"
    )
