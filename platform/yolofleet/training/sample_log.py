"""What became of the samples: those that were skipped, and on request the digest of everything the network saw.

Each worker appends to a log of its own, ``samples/rank-N.jsonl``. A start at step S first removes the rows of steps
from S on, so that the logs together always tell of the steps behind the newest weights: none twice, none missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from yolofleet.storage import Storage
from yolofleet.tracking.json_lines import read_rows
from yolofleet.tracking.log_writer import Fenced, LogWriter, open_log, truncate_parts, unfenced

if TYPE_CHECKING:
    from yolofleet.data.stream import MicroBatch

FOLDER = "samples"


def log_names(storage: Storage) -> list[str]:
    """Return the names of all workers' logs."""
    keys = (entry.key for entry in storage.list("rank-"))
    return sorted({"-".join(key.removesuffix(".jsonl").split("-")[:2]) for key in keys if key.endswith(".jsonl")})


def forget_from(storage: Storage, step: int) -> None:
    """Remove the rows of ``step`` and later; no worker may be writing."""
    for name in log_names(storage):
        truncate_parts(storage, name, lambda row: int(row["step"]) < step)


def sample_rows(run_storage: Storage) -> Iterator[dict[str, Any]]:
    """Return all rows of a run's sample logs, worker by worker."""
    storage = run_storage.child(FOLDER)
    for name in log_names(storage):
        yield from read_rows(storage, name)


class SampleLog:
    """One worker's log."""

    def __init__(self, run_storage: Storage, rank: int, *, record_digests: bool, fenced: Fenced = unfenced) -> None:
        self._storage = run_storage.child(FOLDER)
        self._fenced = fenced
        self._rank = rank
        self._record_digests = record_digests
        self._writer: LogWriter | None = None

    def observe(self, batch: MicroBatch) -> None:
        """Note a micro-batch as it enters the network."""
        place = {"step": batch.step, "micro_batch": batch.index}
        for key, reason in batch.skipped:
            self._append({**place, "skipped": key, "reason": reason})
        if self._record_digests:
            self._append({**place, "digest": batch.digest(), "keys": list(batch.keys)})

    def _append(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            self._writer = open_log(self._storage, f"rank-{self._rank}", self._fenced)
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
