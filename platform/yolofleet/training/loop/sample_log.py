"""What became of the samples: those that were skipped, and on request the digest of everything the network saw.

Each worker appends to a log of its own, ``samples/rank-N.jsonl``. A start at step S first removes the rows of steps
from S on, so the logs together cover the steps behind the newest weights: none twice, none missing. What a run skipped
is counted from these logs alone, so the sums hold over all workers and restarts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from yolofleet.core.text import visible
from yolofleet.storage import Storage, StorageError
from yolofleet.tracking.json_lines import Cursor, list_logs, read_new_rows
from yolofleet.tracking.log_writer import CheckLock, LogWriter, always_allowed, open_log, truncate_parts
from yolofleet.tracking.run_documents import SkippedReport, read_document

if TYPE_CHECKING:
    from yolofleet.data.stream import MicroBatch
    from yolofleet.tracking.run_directory import RunDirectory
    from yolofleet.training.loop.worker_group import WorkerGroup

FOLDER = "samples"
PUT_INTERVAL_SECONDS = 30.0
"""Between two puts to an object store: a checkpoint flushes the logs, and a restart removes what is behind it."""
PREFIX = "rank-"


def remove_rows_from(storage: Storage, step: int) -> None:
    """Remove the rows of ``step`` and later steps; no worker may be writing."""
    for name in list_logs(storage, PREFIX):
        truncate_parts(storage, name, lambda row: int(row.get("step", 0)) < step)


class SampleLog:
    """One worker's log."""

    def __init__(
        self, run_storage: Storage, rank: int, *, record_digests: bool, check_lock: CheckLock = always_allowed
    ) -> None:
        self._storage = run_storage.child(FOLDER)
        self._check_lock = check_lock
        self._rank = rank
        self._record_digests = record_digests
        self._writer: LogWriter | None = None

    def observe(self, batch: MicroBatch) -> None:
        """Record a micro-batch as it enters the network."""
        where = {"step": batch.step, "micro_batch": batch.index}
        for key, reason in batch.skipped:
            self._append({**where, "skipped": key, "reason": reason})
        if self._record_digests:
            self._append({**where, "digest": batch.digest(), "keys": list(batch.keys)})

    def _append(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            name = f"{PREFIX}{self._rank}"
            self._writer = open_log(self._storage, name, self._check_lock, put_interval_seconds=PUT_INTERVAL_SECONDS)
        self._writer.append(row)

    def flush(self) -> None:
        """Return when every row is stored."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush and release the log."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


REPORT_KEY = "report/skipped.json"
"""In the run directory; what lies below ``report/`` goes to MLflow."""
MOST_KEYS = 10_000
"""Keys named for each reason; a run that skips more was stopped long before."""
NUM_KEYS_SHOWN = 3
LONGEST_SHOWN = 200
"""Characters of a key or a reason on a line."""


class SkippedSamples:
    """Counts what the workers of a run skipped; reads only what was logged since the last time."""

    def __init__(self, run_storage: Storage) -> None:
        self._storage = run_storage.child(FOLDER)
        self._cursors: dict[str, Cursor] = {}
        self._by_reason: dict[str, Counter[str]] = {}

    def update(self) -> None:
        """Read the rows that are new."""
        for name in list_logs(self._storage, PREFIX):
            rows, self._cursors[name] = read_new_rows(self._storage, name, self._cursors.get(name, Cursor()))
            _count(
                self._by_reason,
                ((str(row["skipped"]), str(row["reason"])) for row in rows if {"skipped", "reason"} <= row.keys()),
            )

    @property
    def total(self) -> int:
        """How often a sample was skipped."""
        return sum(keys.total() for keys in self._by_reason.values())

    def document(self, num_seen: int) -> dict[str, Any]:
        """Return the report.

        Args:
            num_seen: Samples that the run has asked for so far.
        """
        return _document(self._by_reason, num_seen)

    def write_report(self, run: RunDirectory, step: int, num_seen: int) -> None:
        """Write the report into the run directory and its counts into the metrics; nothing if nothing was skipped."""
        if not self._by_reason:
            return
        document = self.document(num_seen)
        run.storage.put(REPORT_KEY, json.dumps(document, indent=1).encode())
        counts = {f"skipped_{reason}": entry["count"] for reason, entry in document["reasons"].items()}
        run.append_metrics({"step": step} | counts)


def store_skips(
    log: SampleLog, skipped: SkippedSamples, run: RunDirectory, group: WorkerGroup, step: int, num_seen: int
) -> StorageError | None:
    """Store which samples were skipped so far: no checkpoint may be younger than that. A collective.

    Args:
        log: This worker's log.
        skipped: What all workers have skipped; the first worker counts it.
        run: Gets the report.
        group: This worker.
        step: Steps done.
        num_seen: Samples that the run has asked for so far.

    Returns:
        Why it is not stored; None where it is. A storage that does not answer costs a checkpoint, not the run.
    """
    failure: StorageError | None = None
    try:
        log.flush()
    except StorageError as error:
        failure = error
    failed = group.flag(failure is not None)
    group.sum(failed)
    if failed > 0:
        return failure or StorageError("the sample log of another worker could not be stored", transient=True)
    if group.is_first:
        try:
            skipped.update()
            skipped.write_report(run, step, num_seen)
        except StorageError as error:
            return error
    return None


def skipped_document(skipped: Iterable[tuple[str, str]], num_seen: int) -> dict[str, Any]:
    """Return the report of (key, reason) pairs, such as those of an evaluation, out of ``num_seen`` samples."""
    by_reason: dict[str, Counter[str]] = {}
    _count(by_reason, skipped)
    return _document(by_reason, num_seen)


def _count(by_reason: dict[str, Counter[str]], skipped: Iterable[tuple[str, str]]) -> None:
    for key, reason in skipped:
        by_reason.setdefault(reason, Counter())[key] += 1


def _document(by_reason: Mapping[str, Counter[str]], num_seen: int) -> dict[str, Any]:
    total = sum(keys.total() for keys in by_reason.values())
    reasons = {
        reason: {"count": keys.total(), "samples": len(keys), "keys": dict(sorted(keys.items())[:MOST_KEYS])}
        for reason, keys in sorted(by_reason.items(), key=lambda item: (-item[1].total(), item[0]))
    }
    return {"skipped": total, "seen": num_seen, "share": total / max(1, num_seen), "reasons": reasons}


def read_skipped(run_storage: Storage) -> dict[str, Any]:
    """Return the report that a run left: what ``SkippedSamples.document`` returns; empty if it skipped nothing.

    Raises:
        UserError: It is damaged.
    """
    cure = "remove it: the next checkpoint writes it"
    return read_document(run_storage, REPORT_KEY, SkippedReport, cure) or _document({}, 0)


def format_skips(document: Mapping[str, Any]) -> str:
    """Return a report as one line: skipped samples, samples seen, and for each reason the first keys."""
    if not document.get("skipped"):
        return "none"
    parts = []
    for reason, entry in document["reasons"].items():
        first = list(entry["keys"])[:NUM_KEYS_SHOWN]
        more = entry["samples"] - len(first)
        keys = ", ".join(visible(key, LONGEST_SHOWN) for key in first)
        parts.append(
            f"{visible(reason, LONGEST_SHOWN)} x {entry['count']} ({keys}{f' and {more} more' if more else ''})"
        )
    return f"{document['skipped']:,} of {document['seen']:,} ({document['share']:.2%}): {'; '.join(parts)}"
