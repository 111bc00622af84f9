"""The records of a lock in storage: one object for each holder, ``lock/00000001.json``, ``lock/00000002.json``, ..."""

from __future__ import annotations

import getpass
import json
import os
import re
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.liveness import ProcessId
from yolofleet.storage.objects import ObjectNotFoundError, Storage

FOLDER = "lock"
PROCESS_KEYS = {"host": "host", "place": "process_table", "process": "pid", "process_began": "start_ticks"}
"""Keys of a stored record that name its process, with the fields of `ProcessId`."""


@dataclass(frozen=True, kw_only=True)
class FencingToken:
    """Proves which holder a process writes for. It may be sent to other processes."""

    number: int
    """The holder's number."""
    mark: str
    """What no other holder has."""


@dataclass(frozen=True, kw_only=True)
class LockRecord:
    """What a lock says of one holder."""

    number: int
    """Number of the holder, counted from 1."""
    mark: str
    """What no other holder has."""
    process: ProcessId
    user: str
    """Whose process it is."""
    since: str
    """When it took the lock, by its own clock; for messages only."""
    lease_seconds: float
    """After this long without a renewal others may take the lock over."""
    renewals: int = 0
    """How often it has renewed the lock."""
    released: bool = False
    """Whether it has released the lock."""

    @staticmethod
    def of_this_process(number: int, lease_seconds: float) -> LockRecord:
        """Return the first record of this process as the holder of a number."""
        return LockRecord(
            number=number,
            mark=uuid.uuid4().hex,
            process=ProcessId.current(),
            user=_user(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            lease_seconds=lease_seconds,
        )

    @property
    def token(self) -> FencingToken:
        """The token of those who write for this holder."""
        return FencingToken(number=self.number, mark=self.mark)

    def __str__(self) -> str:
        return f"process {self.process.pid} of {self.user} on {self.process.host}, since {self.since}"

    def to_bytes(self) -> bytes:
        """Return the content of the object that holds the record."""
        document = asdict(self)
        process = document.pop("process")
        return json.dumps(document | {key: process[name] for key, name in PROCESS_KEYS.items()}, indent=1).encode()

    @staticmethod
    def from_bytes(data: bytes) -> LockRecord:
        """Return the record that an object holds.

        Raises:
            ValueError, TypeError, KeyError: The object is damaged.
        """
        document: dict[str, Any] = json.loads(data)
        process = ProcessId(**{name: document.pop(key) for key, name in PROCESS_KEYS.items()})
        return LockRecord(process=process, **document)


def record_key(number: int) -> str:
    """Return the key of the record of a number."""
    return f"{FOLDER}/{number:08d}.json"


def newest_record(storage: Storage) -> LockRecord | None:
    """Return the record with the highest number; None where there is none."""
    names = (re.fullmatch(rf"{FOLDER}/(\d+)\.json", entry.key) for entry in storage.list(f"{FOLDER}/"))
    numbers = sorted(int(match[1]) for match in names if match)
    return read_record(storage, numbers[-1]) if numbers else None


def record_if_newest(storage: Storage, token: FencingToken) -> LockRecord | None:
    """Return the record of a token's holder; None once another holds the lock. It lists nothing."""
    record = read_record(storage, token.number)
    if record is None or record.mark != token.mark or storage.exists(record_key(token.number + 1)):
        return None
    return record


def read_record(storage: Storage, number: int) -> LockRecord | None:
    """Return the record of a number; None where there is none.

    Raises:
        UserError: Its object is damaged.
        StorageError: The storage does not answer.
    """
    try:
        return LockRecord.from_bytes(storage.get(record_key(number)))
    except ObjectNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{storage.url}/{record_key(number)}: is damaged ({error}); remove it if nobody uses {storage.url}"
        ) from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return f"user {os.getuid()}"
