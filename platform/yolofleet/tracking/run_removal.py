"""Removing runs: which of them a rule takes, and taking one away so that what is left never looks whole.

A run is removed under its own lock, which a start of the same run waits for or fails on. What makes parts of it count
goes first: the marks of checkpoints, the card of the model, the job. A removal that is cut off leaves a run without
checkpoints, or a leftover, and the next one finishes it. The small record of the released lock stays: a start that
read it in the same moment counts on from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from yolofleet.core.background import gather
from yolofleet.core.file_names import DETECTOR_CARD_NAME
from yolofleet.storage import Storage
from yolofleet.storage.lock import FOLDER as LOCK_FOLDER
from yolofleet.storage.lock import hold, newest_record
from yolofleet.tracking.run_catalog import SEARCH_KEY, Kind, StoredRun
from yolofleet.tracking.run_directory import IDENTITY_KEY, JOB_KEY, RELEASE_KEY

MARKS = ("/COMMITTED", f"/{DETECTOR_CARD_NAME}", f"/{RELEASE_KEY}", f"/{JOB_KEY}", f"/{SEARCH_KEY}", f"/{IDENTITY_KEY}")
"""How the keys end without which a checkpoint, a model or a run is none, in the order in which they go."""
RAY_FOLDER = re.compile(r"(ray/[0-9a-f]{32})/")
"""What Ray Train keeps of one start of the workers; nothing reads it afterwards."""
TRIAL_CHECKPOINTS = re.compile(r"(trials/[^/]+/checkpoints)/")


DELETIONS_A_CHECK = 200
"""Objects that go between two looks at the lock."""


@dataclass(frozen=True)
class Candidate:
    """A run or search that a rule is asked about."""

    name: str
    kind: Kind
    state: str
    changed_at: float
    """When its newest object was written, in seconds since 1970."""


@dataclass(frozen=True)
class Retention:
    """Which runs may go."""

    keep_last: int | None = None
    """This many of the newest stay, of all runs and searches in these states; None: none of them must."""
    older_than_seconds: float | None = None
    """Whoever changed within this time stays; None: whatever its age."""
    states: frozenset[str] = frozenset({"FINISHED"})
    """Only runs in these states go."""

    def expired(self, candidates: Iterable[Candidate], now: float) -> list[Candidate]:
        """Return the candidates that may go, the oldest first; leftovers need no state, and are not counted."""
        everyone = sorted(candidates, key=lambda entry: (entry.changed_at, entry.name))
        ended = [entry for entry in everyone if entry.state in self.states and entry.kind != "leftover"]
        newest = set(ended[max(0, len(ended) - (self.keep_last or 0)) :])
        leftovers = [entry for entry in everyone if entry.kind == "leftover"]
        return [
            entry
            for entry in (*ended, *leftovers)
            if entry not in newest
            and (self.older_than_seconds is None or now - entry.changed_at > self.older_than_seconds)
        ]


def folders_matching(run: StoredRun, pattern: re.Pattern[str]) -> dict[str, int]:
    """Return the folders of a run whose objects' keys begin as a pattern says, with their bytes."""
    sizes: dict[str, int] = {}
    for entry in run.objects:
        if match := pattern.match(entry.key):
            sizes[match[1]] = sizes.get(match[1], 0) + entry.size_bytes
    return sizes


def is_in_use(storage: Storage) -> str | None:
    """Return who holds the lock of a run, None for nobody; a holder elsewhere that gave no end counts, too."""
    record = newest_record(storage)
    return None if record is None or record.released or record.process.has_ended() else str(record)


def remove_run(storage: Storage, notify: Callable[[str], None]) -> None:
    """Remove a run, a search with its trials, or a leftover.

    Args:
        storage: Its directory.
        notify: Takes a line where a lock is waited for whose holder may be dead.

    Raises:
        LockHeldError: Somebody trains it.
        StorageError: The storage does not answer; the next removal finishes this one.
    """
    _remove(storage, notify, lambda key: True)


def remove_folders(storage: Storage, folders: Sequence[str], notify: Callable[[str], None]) -> None:
    """Remove folders of a run, and keep the rest; raises as `remove_run` does."""
    prefixes = tuple(f"{folder}/" for folder in folders)
    _remove(storage, notify, lambda key: key.startswith(prefixes))


def _remove(storage: Storage, notify: Callable[[str], None], is_meant: Callable[[str], bool]) -> None:
    with hold(storage, notify=notify) as lock:
        keys = [entry.key for entry in storage.list()]  # only now: nobody else writes any more
        meant = [key for key in keys if is_meant(key) and not key.startswith(f"{LOCK_FOLDER}/")]
        marks = sorted((key for key in meant if _rank(key) < len(MARKS)), key=lambda key: (_rank(key), key))
        for key in marks:
            lock.fence.check()
            storage.delete(key)
        rest = [partial(storage.delete, key) for key in meant if _rank(key) == len(MARKS)]
        for start in range(0, len(rest), DELETIONS_A_CHECK):
            lock.fence.check()
            for result in gather(rest[start : start + DELETIONS_A_CHECK], deadline_seconds=math.inf):
                if isinstance(result, Exception):
                    raise result


def _rank(key: str) -> int:
    """Return how soon a key goes: the marks first."""
    return next((rank for rank, mark in enumerate(MARKS) if f"/{key}".endswith(mark)), len(MARKS))
