"""An append-only log of JSON rows: how a row is written, where its lines lie, and how they are read back.

A row is one line of JSON and counts from its newline on: an unfinished last line, left by a process that was killed,
does not count. On a disk a log is one file, ``NAME.jsonl``. An object store has no append, so there a log is a chain of
parts, ``NAME.jsonl``, ``NAME-00001.jsonl``, ..., and only the last part is ever put again: what is sent for each new
row stays bounded however long the run. Reading is the same for both, and bounded, for anybody may have written the log:
it goes by blocks, and a line or a log that is far longer than any is an error. JSON has no NaN or infinity; they are
written as the strings that protobuf's JSON mapping uses.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError
from yolofleet.core.retry import GrowingPause
from yolofleet.core.text import short
from yolofleet.storage import ObjectNotFoundError, Storage
from yolofleet.tracking.row_fields import fault_of, plain_fields, without_non_finite

Row = dict[str, Any]
OnRow = Callable[[Row], None]
"""Takes a row of metrics or an event (it has a ``kind``)."""

PART_BYTES = 4 << 20
"""An object part that has reached this size is full; the next row begins a new one."""
BLOCK_BYTES = 2 * PART_BYTES
"""How much is asked for at a time: a whole part of an object store's log, and its next rows."""
LONGEST_LINE = 1 << 20
MOST_LOG_BYTES = 4 << 30
"""Of one part; the rows of a run of weeks that reports every step."""
PART_KEY = re.compile(r"(.+?)(-[0-9]{5,9})?\.jsonl", re.DOTALL)
"""The name of a log, and the number of the part from the second one on."""


def ignore_row(row: Row) -> None:
    """Do nothing with a row."""


def utc_now() -> str:
    """Return the time now in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(row: Row) -> float:
    """Return when a row was written, in seconds since 1970.

    Raises:
        CorruptLogError: The row does not say it.
    """
    try:
        return datetime.fromisoformat(str(row["time"])).timestamp()
    except (KeyError, ValueError, OverflowError):
        raise CorruptLogError(
            f"a row of a log says no time that can be read, repair or remove it: {short(row)}"
        ) from None


class CorruptLogError(UserError):
    """A log is damaged: a line is not a row although rows follow it, a row's fields are wrong, or it is too long."""


def encode_row(row: Mapping[str, Any]) -> bytes:
    """Return the row as one line of JSON, newline included.

    Raises:
        TypeError: A value is neither text, number, boolean, None nor a list or mapping of these.
    """
    text = json.dumps(without_non_finite(row), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def decode_row(line: bytes, where: str) -> Row | None:
    """Return the row of one line (without its newline), or None where the line holds no JSON object.

    Args:
        line: The line.
        where: Its log, for messages.

    Raises:
        CorruptLogError: It holds a JSON object whose fields are not those of a row.
    """
    if len(line) > LONGEST_LINE:
        size = format_bytes(LONGEST_LINE)
        raise CorruptLogError(f"{where}: a row has more than {size}: {_start_of(line)}; repair or remove it")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # also UnicodeDecodeError; nested as deep as no row is
        return None
    if not isinstance(found, dict):
        return None
    row = plain_fields(found)
    if (fault := fault_of(row)) is not None:
        raise CorruptLogError(f"{where}: a row is damaged, repair or remove it: {fault}: {short(row)}")
    return row


@dataclass(frozen=True)
class Part:
    """One object of a log's chain."""

    key: str
    size_bytes: int


def part_key(name: str, index: int) -> str:
    """Return the key of the log's part ``index``."""
    return f"{name}.jsonl" if index == 0 else f"{name}-{index:05d}.jsonl"


def list_logs(storage: Storage, prefix: str) -> list[str]:
    """Return the names of the logs that begin with a prefix, in order."""
    return sorted({match[1] for part in _list_objects(storage, prefix) if (match := PART_KEY.fullmatch(part.key))})


def list_parts(storage: Storage, name: str) -> list[Part]:
    """Return the parts of a log, in order; none where nothing was written yet."""
    return parts_by_log(storage, name).get(name, [])


def parts_by_log(storage: Storage, prefix: str) -> dict[str, list[Part]]:
    """Return the logs that begin with a prefix, and the parts of each, in order."""
    return group_parts(_list_objects(storage, prefix))


def group_parts(parts: Iterable[Part]) -> dict[str, list[Part]]:
    """Return the parts by the name of their log, in order; objects that belong to no log are left out."""
    found: dict[str, list[Part]] = {}
    for part in sorted(parts, key=lambda part: (len(part.key), part.key)):
        if (match := PART_KEY.fullmatch(part.key)) is not None:
            found.setdefault(match[1], []).append(part)
    return found


def read_end(storage: Storage, parts: Sequence[Part], most_bytes: int) -> list[Row]:
    """Return the last rows of a log, oldest first: what its newest bytes hold, by one request a part.

    Args:
        storage: Holds the log.
        parts: Its parts, as they were listed.
        most_bytes: How much is read.
    """
    rows: list[Row] = []
    for part in reversed(parts):
        start = max(0, part.size_bytes - most_bytes)
        lines = storage.get_from(part.key, start, most_bytes).split(b"\n")[:-1]
        # From the middle of a part on, the first line is the end of one.
        where = f"{storage.url}/{part.key}"
        rows = [row for line in lines[bool(start) :] if (row := decode_row(line, where)) is not None] + rows
        most_bytes -= part.size_bytes
        if most_bytes <= 0:
            break
    return rows


def _list_objects(storage: Storage, prefix: str) -> list[Part]:
    if (path := storage.local_path(part_key(prefix, 0))) is not None:  # one folder, instead of the walk that list() is
        found = (entry for entry in path.parent.glob(f"{prefix}*.jsonl") if entry.exists())
        return [Part(entry.name, entry.stat().st_size) for entry in found]
    return [Part(entry.key, entry.size_bytes) for entry in storage.list(prefix)]


def part_index(name: str, part: Part) -> int:
    """Return the position of a part in its log's chain."""
    return int(part.key.removesuffix(".jsonl").removeprefix(name).lstrip("-") or 0)


@dataclass(frozen=True)
class Cursor:
    """How far a log has been read: the part, the bytes before the cursor in it, and the last line among them.

    The line shows on the next read whether the log was truncated and rewritten in between.
    """

    part: int = 0
    offset_bytes: int = 0
    last_line: bytes = b""


def read_rows(storage: Storage, name: str) -> list[Row]:
    """Return every row of a log, oldest first.

    Raises:
        CorruptLogError: A line is not a row although rows follow it.
    """
    return read_new_rows(storage, name, Cursor())[0]


def read_new_rows(storage: Storage, name: str, cursor: Cursor) -> tuple[list[Row], Cursor]:
    """Return the rows after ``cursor`` and the cursor behind them; from the start if the log was truncated since.

    Nothing is listed. A read asks for the rest of the part that the cursor is in, and for the next part where there
    may be one: from the start every part is asked for until one is missing, and later only behind one that is full.
    """
    rows, cursor, _ = _read_from(storage, name, cursor)
    return rows, cursor


def _read_from(storage: Storage, name: str, cursor: Cursor) -> tuple[list[Row], Cursor, bool]:
    """Do what `read_new_rows` does, and return also whether the log was truncated since."""
    from_start = cursor == Cursor()
    found = _read_part(storage, name, cursor)
    if found is None:
        return ([], cursor, False) if from_start else (*read_new_rows(storage, name, Cursor()), True)
    rows: list[Row] = []
    while found is not None:
        new, end, size_bytes = found
        rows += new
        cursor = end if end.offset_bytes else cursor
        is_last = not from_start and size_bytes < PART_BYTES
        found = None if is_last else _read_part(storage, name, Cursor(end.part + 1))
    return rows, cursor, False


def _read_part(storage: Storage, name: str, cursor: Cursor) -> tuple[list[Row], Cursor, int] | None:
    """Return a part's rows after the cursor, the cursor behind them, and its size; None where the cursor is not in it.

    Raises:
        CorruptLogError: A line is not a row although rows follow it, or the part is far larger than any.
    """
    key, start = part_key(name, cursor.part), cursor.offset_bytes - len(cursor.last_line)
    where = f"{storage.url}/{key}"
    try:
        block = storage.get_from(key, start, BLOCK_BYTES)
    except ObjectNotFoundError:
        return None
    if not block.startswith(cursor.last_line):
        return None
    rows: list[Row] = []
    end, read_to = cursor.offset_bytes, start + len(block)
    line_start, rest = end, block[len(cursor.last_line) :]
    damaged: tuple[int, bytes] | None = None  # a lost disk cache leaves zeros and halves of lines behind the last row
    while True:
        *lines, rest = rest.split(b"\n")  # a row is complete with its newline
        for line in lines:
            row = decode_row(line, where)
            if row is None:
                damaged = damaged or (line_start, line)
            elif damaged is not None:
                raise CorruptLogError(
                    f"{where}: the line at byte {damaged[0]} is not a JSON row: {_start_of(damaged[1])}; "
                    "rows follow it, so it was not an interrupted write: repair or remove the line"
                )
            else:
                rows.append(row)
                end = line_start + len(line) + 1
                cursor = Cursor(cursor.part, end, line + b"\n")
            line_start += len(line) + 1
        if len(block) < BLOCK_BYTES:
            return rows, cursor, read_to
        if len(rest) > LONGEST_LINE or read_to - start > MOST_LOG_BYTES:
            raise CorruptLogError(
                f"{where}: is no log of rows: a line has more than {format_bytes(LONGEST_LINE)}, or all of it more "
                f"than {format_bytes(MOST_LOG_BYTES)}; the line at byte {line_start}: {_start_of(rest)}; remove it"
            )
        block = storage.get_from(key, read_to, BLOCK_BYTES)
        read_to += len(block)
        rest += block


def _start_of(line: bytes) -> str:
    return short(line[:200].decode(errors="replace"))


@dataclass
class _Followed:
    name: str
    pause: GrowingPause
    cursor: Cursor = Cursor()


class LogReader:
    """Reads logs that others write, each from where it stopped.

    Attributes:
        num_truncations: How often a log was found shorter than it had been.

    Args:
        storage: Holds the logs.
        names: Their names; a log that is not there yet is empty.
        clock: Seconds since any moment.
    """

    def __init__(self, storage: Storage, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.num_truncations = 0
        self._storage = storage
        self._logs = [_Followed(name, GrowingPause(clock)) for name in names]

    def new_rows(self, *, only_due: bool = False) -> list[Row]:
        """Return the rows since the last call, log by log; all rows of a log again that was cut since.

        Args:
            only_due: Leave out logs in an object store that have been quiet and were looked at lately.

        Raises:
            StorageError: The storage does not answer; the next call returns the same rows.
        """
        due = [log for log in self._logs if not only_due or self._is_on_disk(log) or log.pause.is_over()]
        found = [_read_from(self._storage, log.name, log.cursor) for log in due]
        for log, (rows, cursor, is_truncated) in zip(due, found, strict=True):
            log.cursor = cursor
            log.pause.begin(changed=bool(rows))
            self.num_truncations += is_truncated
        return [row for rows, *_ in found for row in rows]

    def _is_on_disk(self, log: _Followed) -> bool:
        return self._storage.local_path(part_key(log.name, 0)) is not None
