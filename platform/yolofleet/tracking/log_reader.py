"""Reading the logs of a run while they grow: what is new since the last look, for as few requests as possible."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yolofleet.core.pauses import GrowingPause
from yolofleet.storage import Storage
from yolofleet.tracking.json_lines import Cursor, Row, part_key, read_new_rows


@dataclass
class _Followed:
    name: str
    pause: GrowingPause
    cursor: Cursor = Cursor()  # noqa: RUF009 - it is frozen


class LogReader:
    """Reads logs that others write, each from where it stopped.

    Args:
        storage: Holds the logs.
        names: Their names; a log that is not there yet is empty.
        clock: Seconds since any moment.
    """

    def __init__(self, storage: Storage, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
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
        found = [read_new_rows(self._storage, log.name, log.cursor) for log in due]
        for log, (rows, cursor) in zip(due, found, strict=True):
            log.cursor = cursor
            log.pause.begin(changed=bool(rows))
        return [row for rows, _ in found for row in rows]

    def _is_on_disk(self, log: _Followed) -> bool:
        return self._storage.local_path(part_key(log.name, 0)) is not None
