"""The records of a lock: what each of its holders has written, and which one is the newest.

Anybody who may write to the storage may have written one, so whatever is strange in it makes it a damaged one.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.liveness import LEASE_SECONDS, ProcessId, user_name
from yolofleet.core.text import one_line, short, visible
from yolofleet.storage.objects import ObjectNotFoundError, Storage

FOLDER = "lock"
MOST_RECORD_BYTES = 10_000
LONGEST_TEXT = 256
LONGEST_LEASE_SECONDS = 10 * LEASE_SECONDS
"""Anybody may have written a record: nobody is kept waiting for longer."""
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
            user=visible(user_name(), LONGEST_TEXT)[:LONGEST_TEXT],
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
            ValueError, TypeError, KeyError, AttributeError, RecursionError: The object is damaged.
        """
        document: dict[str, Any] = json.loads(data)
        process = ProcessId(**{name: document.pop(key) for key, name in PROCESS_KEYS.items()})
        record = LockRecord(process=process, **document)
        texts = (record.mark, record.user, record.since, process.host, process.process_table)
        numbers = (record.number, record.renewals, process.pid, process.start_ticks)
        if any(not isinstance(text, str) or not text.isprintable() or len(text) > LONGEST_TEXT for text in texts):
            raise ValueError("a text in it is none, or too long, or has characters that cannot be printed")
        if any(type(number) is not int or not -1 <= number < 2**63 for number in numbers):
            raise ValueError("a number in it is not whole, or too large")
        if type(record.lease_seconds) not in (int, float) or not 0 < record.lease_seconds <= LONGEST_LEASE_SECONDS:
            raise ValueError(f"its lease is {short(record.lease_seconds)}, not up to {LONGEST_LEASE_SECONDS:g} s")
        if type(record.released) is not bool:
            raise ValueError("released is neither true nor false")
        return record


def record_key(number: int) -> str:
    """Return the key of the record of a number."""
    return f"{FOLDER}/{number:08d}.json"


def newest_record(storage: Storage) -> LockRecord | None:
    """Return the record with the highest number; None where there is none."""
    names = (re.fullmatch(rf"{FOLDER}/([0-9]{{8,12}})\.json", entry.key) for entry in storage.list(f"{FOLDER}/"))
    numbers = sorted(number for match in names if match and record_key(number := int(match[1])) == match[0])
    return read_record(storage, numbers[-1]) if numbers else None


def record_if_newest(storage: Storage, token: FencingToken) -> LockRecord | None:
    """Return the record of a token's holder; None once another holds the lock. It lists nothing."""
    record = read_record(storage, token.number)
    if record is None or record.mark != token.mark or read_record(storage, token.number + 1) is not None:
        return None
    return record


def read_record(storage: Storage, number: int) -> LockRecord | None:
    """Return the record of a number; None where there is none.

    Raises:
        UserError: Its object is damaged.
        StorageError: The storage does not answer.
    """
    try:
        record = LockRecord.from_bytes(storage.confined().get_at_most(record_key(number), MOST_RECORD_BYTES))
        if record.number != number:
            raise ValueError(f"it is of number {record.number}")
    except ObjectNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{storage.url}/{record_key(number)}: is damaged ({one_line(error)}); remove it if nobody uses "
            f"{storage.url}"
        ) from error
    return record
