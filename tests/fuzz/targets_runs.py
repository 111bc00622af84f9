"""Targets: what others wrote into a run directory: rows of its logs, its documents, the record of its lock."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from yolofleet.core.errors import UserError
from yolofleet.storage import open_storage
from yolofleet.storage.lock import LockRecord
from yolofleet.tracking.run_catalog import figures_at
from yolofleet.tracking.run_directory import FACTS_KEY, IDENTITY_KEY, RELEASE_KEY, RunDirectory
from yolofleet.tracking.run_page import render_run
from yolofleet.tracking.run_record import DIAGNOSIS_KEY, EVALUATION_KEY, read_run
from yolofleet.training.loop.sample_log import REPORT_KEY, format_skips, read_skipped

FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-runs-")
RUN = Path(FOLDER.name) / "run"
DOCUMENTS = (EVALUATION_KEY, DIAGNOSIS_KEY, RELEASE_KEY, REPORT_KEY, FACTS_KEY, IDENTITY_KEY)


def _read() -> None:
    run = RunDirectory(open_storage(RUN))
    for read in (
        lambda: render_run(read_run(run)),
        lambda: figures_at(run.storage),
        lambda: format_skips(read_skipped(run.storage)),
        lambda: run.identity,
    ):
        with contextlib.suppress(UserError):
            read()


def fuzz_run_log(data: bytes) -> None:
    """Read metrics and events, each up to a NUL, and make the page of the run."""
    metrics, _, events = data.partition(b"\0")
    RUN.mkdir(exist_ok=True)
    (RUN / "metrics.jsonl").write_bytes(metrics)
    (RUN / "events.jsonl").write_bytes(events)
    _read()


def fuzz_run_document(data: bytes) -> None:
    """Read the document that the first byte chooses; a diagnosis is that of an evaluation of its own."""
    key = DOCUMENTS[(data[0] if data else 0) % len(DOCUMENTS)]
    path = RUN / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[1:])
    try:
        _read()
    finally:
        path.unlink()


def fuzz_lock_record(data: bytes) -> None:
    """Read the record of a lock; one that is taken has a lease that ends, and one line."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        record = LockRecord.from_bytes(data)
        assert 0 < record.lease_seconds <= 600 and str(record).isprintable()
        assert LockRecord.from_bytes(record.to_bytes()) == record
        record.process.has_ended()
