"""All runs and searches below a storage, and how far each has come: from one listing, and a few requests a run.

Nothing but the storage is asked, so a run is known whatever became of the cluster that trained it. The listing tells
what there is and how large it is; a run's events and the newest rows of its metrics tell the rest.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

from yolofleet.core.background import gather
from yolofleet.core.errors import UserError
from yolofleet.core.liveness import LEASE_SECONDS
from yolofleet.core.text import first_line, visible
from yolofleet.storage import ObjectInfo, Storage
from yolofleet.tracking.goodput import STATUS_OF_EVENT, status_after, summarize_run
from yolofleet.tracking.json_lines import Part, Row, group_parts, parts_by_log, read_end, seconds_of
from yolofleet.tracking.run_directory import (
    EVENTS,
    IDENTITY_KEY,
    JOB_KEY,
    METRICS,
    RELEASE_KEY,
)
from yolofleet.tracking.run_documents import ReleaseRecord, read_document

SEARCH_KEY = "search.yaml"
RECORD = "trials"
AP = "val_AP"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NEWEST_BYTES = 128 << 10
"""How much of the end of a log is read: hundreds of rows."""
MOST_EVENT_BYTES = 4 << 20
SILENT_SECONDS = 3 * LEASE_SECONDS
"""A run whose lock was not renewed for this long has nobody who trains it."""
INTERRUPTED = "INTERRUPTED"
WAITING = "WAITING"
DEADLINE_SECONDS = 15.0
LONGEST_FOLDER = 60

Kind = Literal["run", "search", "leftover"]
Logs = dict[str, list[Part]]
"""Name of a log -> its parts."""


@dataclass(frozen=True)
class StoredRun:
    """What a storage holds under one name."""

    name: str
    kind: Kind
    """A leftover has neither a job nor a search: its removal was interrupted, or it never began."""
    objects: tuple[ObjectInfo, ...]
    """All its objects, by their keys below the name."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(entry.size_bytes for entry in self.objects)

    @property
    def changed_at(self) -> float:
        """When the newest object was written, in seconds since 1970."""
        return max((entry.modified_at for entry in self.objects), default=0.0)

    @cached_property
    def lock_renewed_at(self) -> float | None:
        """When its lock was taken, renewed or released last; None where nobody ever took it."""
        return max((entry.modified_at for entry in self.objects if entry.key.startswith("lock/")), default=None)

    @property
    def num_trials(self) -> int:
        """Trials of a search."""
        return len({entry.key.split("/")[1] for entry in self.objects if entry.key.startswith("trials/")})

    def usage(self) -> dict[str, int]:
        """Return the bytes of each part of it (checkpoints, model, samples, ...), the largest first."""
        sizes: Counter[str] = Counter()
        for entry in self.objects:
            folder, _, rest = entry.key.partition("/")
            sizes[visible(folder, LONGEST_FOLDER) if rest else "records"] += entry.size_bytes
        return dict(sizes.most_common())

    def with_prefix(self, prefix: str) -> tuple[ObjectInfo, ...]:
        """Return the objects below a folder of it."""
        return tuple(entry for entry in self.objects if entry.key.startswith(prefix))

    def logs(self) -> Logs:
        """Return its own logs, without those of trials."""
        return group_parts(Part(entry.key, entry.size_bytes) for entry in self.objects if "/" not in entry.key)


@dataclass(frozen=True)
class RunFigures:
    """How far a run or search has come."""

    state: str
    """Status of the run directory, or WAITING, INTERRUPTED, NEW; UNKNOWN where it cannot be read."""
    step: int | None = None
    """Steps done; of a search, trials that have ended."""
    planned_steps: int | None = None
    eta_seconds: float | None = None
    """Time to the last step at the speed of the newest steps; None unless it runs."""
    ap: float | None = None
    """COCO AP: of the released model, else of the newest evaluation."""
    began_at: float | None = None
    """When it was first started, in seconds since 1970."""
    changed_at: float | None = None
    """When its newest event or row was written."""
    cost: float | None = None
    """What its workers cost so far; None where the job names no `cluster.price_per_hour`."""
    forecast_cost: float | None = None
    """What it will have cost at its end, at its present pace."""
    problem: str | None = None
    """Why it could not be read."""


def catalog(storage: Storage) -> list[StoredRun]:
    """Return all runs, searches and leftovers below a storage, by name; what is of another kind is left out.

    Raises:
        UserError: The storage is a run directory itself, or does not answer.
    """
    entries = storage.list()
    keys = {entry.key for entry in entries}
    if not keys.isdisjoint((JOB_KEY, IDENTITY_KEY, SEARCH_KEY)):
        raise UserError(f"{storage.url}: is the directory of one run; give the storage that holds it, its folder")
    found: dict[str, list[ObjectInfo]] = {}
    for entry in entries:
        name, _, key = entry.key.partition("/")
        if key and RUN_NAME.fullmatch(name):
            found.setdefault(name, []).append(replace(entry, key=key))
    runs = ((name, _kind_of({entry.key for entry in objects}), tuple(objects)) for name, objects in found.items())
    return [StoredRun(name, kind, objects) for name, kind, objects in sorted(runs) if kind is not None]


def catalog_one(storage: Storage, name: str) -> StoredRun | None:
    """Return the run, search or leftover of a name below a storage; None where there is none."""
    objects = tuple(storage.child(name).list())
    kind = _kind_of({entry.key for entry in objects})
    return None if kind is None else StoredRun(name, kind, objects)


def _kind_of(keys: set[str]) -> Kind | None:
    """Return what a folder with these keys is; None for what no run made, and for the mere lock of a removed one."""
    if SEARCH_KEY in keys:
        return "search"
    if not keys.isdisjoint((JOB_KEY, IDENTITY_KEY)):
        return "run"
    has_lock = any(key.startswith("lock/") for key in keys)
    return "leftover" if has_lock and any(not key.startswith("lock/") for key in keys) else None


def read_figures(storage: Storage, logs: Logs, *, lock_renewed_at: float | None = None) -> RunFigures:
    """Return how far a run or search has come: a request for each of its logs of events and metrics.

    Args:
        storage: Its directory.
        logs: Its logs.
        lock_renewed_at: When its lock was renewed last, where that is known.

    Raises:
        UserError: Something is damaged.
        StorageError: The storage does not answer.
    """
    storage = storage.confined()
    events = sorted(
        (row for name in logs if _belongs(name, EVENTS) for row in read_end(storage, logs[name], MOST_EVENT_BYTES)),
        key=lambda row: str(row.get("time", "")),
    )
    rows = sorted(
        (row for name in logs if _belongs(name, METRICS) for row in read_end(storage, logs[name], NEWEST_BYTES)),
        key=lambda row: str(row.get("time", "")),
    )
    figures = summarize_figures(events, rows)
    if RECORD in logs:
        record = read_end(storage, logs[RECORD], MOST_EVENT_BYTES)
        ended = {row.get("trial") for row in record if row.get("kind") == "ended"}  # a row for each of its failed runs
        figures = replace(figures, step=len(ended))
    is_silent = lock_renewed_at is not None and time.time() - lock_renewed_at > SILENT_SECONDS
    if figures.state in ("RUNNING", WAITING) and is_silent:
        return replace(figures, state=INTERRUPTED, eta_seconds=None)
    is_run = figures.state == "FINISHED" and RECORD not in logs
    if is_run and (released := read_document(storage, RELEASE_KEY, ReleaseRecord)) is not None:
        figures = replace(figures, ap=_number(released.get("figures", {}).get("AP")))
    return figures


def figures_at(storage: Storage) -> RunFigures:
    """Return how far the run or search in a directory has come, from two small listings and a request a log."""
    logs = parts_by_log(storage, EVENTS) | parts_by_log(storage, METRICS) | parts_by_log(storage, RECORD)
    return read_figures(storage, logs)


def read_catalog(
    storage: Storage, runs: Sequence[StoredRun], *, deadline_seconds: float = DEADLINE_SECONDS
) -> list[RunFigures]:
    """Return how far each run has come; several are read at a time, and none is waited for after the deadline."""

    def read(run: StoredRun) -> RunFigures:
        if run.kind == "leftover":
            return RunFigures("LEFTOVER", changed_at=run.changed_at)
        return read_figures(storage.child(run.name), run.logs(), lock_renewed_at=run.lock_renewed_at)

    return gather_figures([partial(read, run) for run in runs], deadline_seconds)


def gather_figures(
    readers: Sequence[Callable[[], RunFigures]], deadline_seconds: float = DEADLINE_SECONDS
) -> list[RunFigures]:
    """Return what each reader returns; what fails, or is not there by the deadline, is UNKNOWN and says why."""
    return [_answer(result, deadline_seconds) for result in gather(readers, deadline_seconds=deadline_seconds)]


def _answer(result: RunFigures | Exception | None, deadline_seconds: float) -> RunFigures:
    if isinstance(result, RunFigures):
        return result
    late = f"gave no answer within {deadline_seconds:g} s"
    return RunFigures("UNKNOWN", problem=first_line(result) if isinstance(result, Exception) else late)


def summarize_figures(events: Sequence[Row], rows: Sequence[Row]) -> RunFigures:
    """Return how far a run has come by its events and its newest rows of metrics, both in the order of their times."""
    starts = [event for event in events if event.get("kind") == "start"]
    kinds = [str(event.get("kind")) for event in events]
    state = status_after(events) or "NEW"
    decisive = max((index for index, kind in enumerate(kinds) if kind in STATUS_OF_EVENT), default=-1)
    waits = max((index for index, kind in enumerate(kinds) if kind == "waiting"), default=-1)
    if waits > decisive and "starting" not in kinds[waits:]:
        state = WAITING
    planned = next((int(event["num_steps"]) for event in reversed(starts) if "num_steps" in event), None)
    step = max((int(row.get("step", 0)) for row in rows), default=int(starts[-1].get("step", 0)) if starts else None)
    trained = [row for row in rows if "loss" in row]  # evaluations beside the training come later, of earlier steps
    speed = _steps_per_second([row for row in trained if starts and seconds_of(row) >= seconds_of(starts[-1])])
    summary = summarize_run(events, rows)
    runs = state == "RUNNING" and planned is not None and speed > 0
    return RunFigures(
        state=state,
        step=step,
        planned_steps=planned,
        eta_seconds=max(planned - step, 0) / speed if runs and planned is not None and step is not None else None,
        ap=next((_number(row[AP]) for row in reversed(rows) if AP in row), None),
        began_at=seconds_of(starts[0]) if starts else None,
        changed_at=max((seconds_of(row) for row in (*events[-1:], *rows[-1:])), default=None),
        cost=summary.cost,
        forecast_cost=summary.forecast_cost,
    )


def _belongs(name: str, log: str) -> bool:
    return name == log or name.startswith(f"{log}.")


def _steps_per_second(rows: Sequence[Row]) -> float:
    """Return the speed over the rows of one start: from the first to the last, with the time of evaluations."""
    if len(rows) < 2:
        return 0.0
    seconds = seconds_of(rows[-1]) - seconds_of(rows[0])
    return (int(rows[-1].get("step", 0)) - int(rows[0].get("step", 0))) / seconds if seconds > 0 else 0.0


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
