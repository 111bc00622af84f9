"""The GPU hours that users and projects have used lately, from the run directories of the storages that a quota names.

The run directories are the ledger: each says who sent it (`queued`), and when how many workers trained. Nothing else is
kept, so the hours are right again after the queue, its node or the whole cluster was lost; those of a run that is
removed are forgotten.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from yolofleet.core.background import BackgroundLoop
from yolofleet.core.text import one_line
from yolofleet.specs.cluster import QuotaSpec
from yolofleet.storage import ObjectNotFoundError, Storage, open_storage
from yolofleet.tracking.goodput import gpu_hours_by_owner
from yolofleet.tracking.json_lines import CorruptLogError, Part, Row, group_parts, read_end
from yolofleet.tracking.run_catalog import MOST_EVENT_BYTES, StoredRun, catalog
from yolofleet.tracking.run_directory import EVENTS
from yolofleet.training.supervision.turns import Spent

READ_SECONDS = 120.0
"""How often the run directories are read."""
DAY_SECONDS = 86_400.0
NOT_READ = "the GPU hours that were used so far are being read"

logger = logging.getLogger(__name__)


def spent_hours(storages: Sequence[str], since: float) -> dict[tuple[str, str], float]:
    """Return the GPU hours since a moment, by ("user" or "project", its name).

    Args:
        storages: URLs of the storages whose runs and searches count.
        since: Seconds since 1970.

    Raises:
        UserError: A storage does not answer, or is none.
    """
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for url in storages:
        storage = open_storage(url)
        for run in catalog(storage):
            if run.changed_at >= since:
                child = storage.child(run.name)
                try:
                    hours = run_hours(run, partial(_read_log, child), since)
                except ObjectNotFoundError:  # it was removed meanwhile
                    continue
                # One run must not keep everybody waiting.
                except (CorruptLogError, KeyError, TypeError, ValueError) as error:
                    logger.warning("the GPU hours of %s do not count, for its record is damaged: %r", child.url, error)
                    continue
                for key, amount in hours.items():
                    found[key] += amount
    return found


def _read_log(storage: Storage, parts: Sequence[Part]) -> list[Row]:
    return read_end(storage, parts, MOST_EVENT_BYTES)


def run_hours(
    run: StoredRun, read: Callable[[Sequence[Part]], list[Row]], since: float
) -> dict[tuple[str, str], float]:
    """Return the GPU hours of a run, or of a search with all its trials, since a moment.

    Args:
        run: What the storage lists of it.
        read: Reads a log.
        since: Seconds since 1970.
    """
    logs = group_parts(Part(entry.key, entry.size_bytes) for entry in run.objects if entry.key.endswith(".jsonl"))
    events: dict[str, list[Row]] = {}
    for name, parts in logs.items():
        folder, _, log = name.rpartition("/")
        if log == EVENTS or log.startswith(f"{EVENTS}."):
            events.setdefault(folder, []).extend(read(parts))
    queued = [row for row in _in_order(events.get("", ())) if row.get("kind") == "queued"]
    sender = queued[0] if queued else None
    hours: defaultdict[tuple[str, str], float] = defaultdict(float)
    for folder, rows in events.items():
        until = max(entry.modified_at for entry in run.with_prefix(f"{folder}/" if folder else ""))
        for (user, project), amount in gpu_hours_by_owner(
            _in_order(rows), since=since, until=until, sender=sender
        ).items():
            for scope, owner in (("user", user), ("project", project)):
                if owner is not None:
                    hours[scope, owner] += amount
    return hours


def _in_order(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: str(row.get("time", "")))


class Ledger:
    """Keeps the used hours at hand: a thread reads them, for the queue has to answer at once.

    Args:
        read: Returns the hours by scope and name, of storages since a moment.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        read: Callable[[Sequence[str], float], Mapping[tuple[str, str], float]] = spent_hours,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._wanted: tuple[tuple[str, ...], float] | None = None
        self._spent = Spent(problem=NOT_READ)
        self._loop: BackgroundLoop | None = None

    def look(self, quotas: QuotaSpec) -> Spent:
        """Return what was used by the newest reading; a first call, or one for other storages, begins to read."""
        if not quotas.limits_hours:
            return Spent()
        wanted = (quotas.storages, quotas.window_days)
        with self._lock:
            if wanted != self._wanted:
                self._wanted, self._spent = wanted, Spent(problem=NOT_READ)
                if self._loop is not None:
                    self._loop.close()
                self._loop = BackgroundLoop(
                    self.refresh,
                    seconds=READ_SECONDS,
                    name="gpu-hours",
                    warning="the GPU hours cannot be read",
                    at_once=True,
                    close_timeout_seconds=0.0,
                )
                self._loop.start()
            return self._spent

    def refresh(self) -> None:
        """Read the run directories now."""
        wanted = self._wanted
        assert wanted is not None
        storages, days = wanted
        try:
            spent = Spent(self._read(storages, self._clock() - days * DAY_SECONDS), days)
        except Exception as error:  # of any storage; who waits sees why, and the next reading may work
            spent = Spent(problem=f"the GPU hours that were used so far cannot be read: {one_line(error, 200)}")
        with self._lock:
            if wanted == self._wanted:
                self._spent = spent
