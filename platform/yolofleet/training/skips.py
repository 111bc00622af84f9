"""What a run skipped, by reason and by key: in the run directory, in the metrics (and so in MLflow), and in words.

It is counted from the workers' sample logs alone, which tell of every step behind the newest weights once, so the sums
hold over all workers and restarts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from yolofleet.storage import ObjectNotFoundError, Storage
from yolofleet.tracking.json_lines import Cursor, read_new_rows
from yolofleet.training.sample_log import FOLDER, log_names

if TYPE_CHECKING:
    from yolofleet.tracking.run_directory import RunDirectory

REPORT_KEY = "report/skipped.json"
"""In the run directory; what lies below ``report/`` goes to MLflow."""
MOST_KEYS = 10_000
"""Keys named for each reason; a set that loses more has been stopped long before."""
NUM_KEYS_SHOWN = 3


class SkippedSamples:
    """Counts what the workers of a run skipped; reads only what was logged since the last time."""

    def __init__(self, run_storage: Storage) -> None:
        self._storage = run_storage.child(FOLDER)
        self._cursors: dict[str, Cursor] = {}
        self._by_reason: dict[str, Counter[str]] = {}

    def update(self) -> None:
        """Read the rows that are new."""
        for name in log_names(self._storage):
            rows, self._cursors[name] = read_new_rows(self._storage, name, self._cursors.get(name, Cursor()))
            self._add((str(row["skipped"]), str(row["reason"])) for row in rows if "reason" in row)

    def _add(self, skipped: Iterable[tuple[str, str]]) -> None:
        for key, reason in skipped:
            self._by_reason.setdefault(reason, Counter())[key] += 1

    @property
    def total(self) -> int:
        """How often a sample was skipped."""
        return sum(keys.total() for keys in self._by_reason.values())

    def document(self, num_seen: int) -> dict[str, Any]:
        """Return the report.

        Args:
            num_seen: Samples that the run has asked for so far.
        """
        return _document(self._by_reason, self.total, num_seen)

    def tell(self, run: RunDirectory, step: int, num_seen: int) -> None:
        """Write the report into the run directory and its counts into the metrics; nothing if nothing was skipped."""
        if not self._by_reason:
            return
        document = self.document(num_seen)
        run.storage.put(REPORT_KEY, json.dumps(document, indent=1).encode())
        counts = {f"skipped_{reason}": entry["count"] for reason, entry in document["reasons"].items()}
        run.append_metrics({"step": step} | counts)


def skipped_document(skipped: Iterable[tuple[str, str]], num_seen: int) -> dict[str, Any]:
    """Return the report of (key, reason) pairs, such as those of an evaluation, out of ``num_seen`` samples."""
    by_reason: dict[str, Counter[str]] = {}
    for key, reason in skipped:
        by_reason.setdefault(reason, Counter())[key] += 1
    return _document(by_reason, sum(keys.total() for keys in by_reason.values()), num_seen)


def _document(by_reason: Mapping[str, Counter[str]], total: int, num_seen: int) -> dict[str, Any]:
    reasons = {
        reason: {
            "count": keys.total(),
            "samples": len(keys),
            "keys": dict(sorted(keys.items())[:MOST_KEYS]),
        }
        for reason, keys in sorted(by_reason.items(), key=lambda item: (-item[1].total(), item[0]))
    }
    return {"skipped": total, "seen": num_seen, "share": total / max(1, num_seen), "reasons": reasons}


def read_skipped(run_storage: Storage) -> dict[str, Any]:
    """Return the report that a run left: what ``SkippedSamples.document`` returns; empty if it skipped nothing."""
    try:
        document: dict[str, Any] = json.loads(run_storage.get(REPORT_KEY))
    except ObjectNotFoundError:
        return _document({}, 0, 0)
    return document


def described_skips(document: Mapping[str, Any]) -> str:
    """Return a report as one line: how many, of how many, and for each reason the first keys."""
    if not document.get("skipped"):
        return "none"
    parts = []
    for reason, entry in document["reasons"].items():
        first = list(entry["keys"])[:NUM_KEYS_SHOWN]
        more = entry["samples"] - len(first)
        parts.append(f"{reason} x {entry['count']} ({', '.join(first)}{f' and {more} more' if more else ''})")
    return f"{document['skipped']:,} of {document['seen']:,} ({document['share']:.2%}): {'; '.join(parts)}"
