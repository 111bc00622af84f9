"""A run that was taken over: its old writer adds nothing, whatever it still holds in memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from yolofleet.storage import open_storage
from yolofleet.storage.lock import LockLostError, hold
from yolofleet.tracking.log_writer import FileLogWriter, ObjectLogWriter
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore


def taken_over(folder: Path) -> RunDirectory:
    """A run directory that was open, with its logs, when another process took the run over."""
    storage = open_storage(folder)
    lock = hold(storage)
    run = RunDirectory(storage, token=lock.token)
    run.append_metrics({"step": 1, "loss": 1.0})
    run.append_event("start", step=0)
    lock.release()
    hold(storage).release()
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_row_is_added_or_removed(tmp_path: Path) -> None:
    run = taken_over(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(LockLostError, match="was taken over"):
        run.append_metrics({"step": 2, "loss": 1.0})
    with pytest.raises(LockLostError):
        run.truncate_metrics_after(0)
    with pytest.raises(LockLostError):
        run.flush()
    with pytest.raises(LockLostError):
        RunDirectory(open_storage(tmp_path), source="driver", token=run._fence.token).append_event("failed")  # type: ignore[union-attr]
    assert contents(tmp_path) == before


def test_no_checkpoint_is_written_or_retired(tmp_path: Path) -> None:
    run = taken_over(tmp_path)
    checkpoints = run.storage.child("checkpoints")
    early = CheckpointStore(checkpoints)
    for step in range(3):
        early.save(step, {"weights": {"w": torch.ones(2)}}, {})
    early.wait()
    before = contents(tmp_path)
    late = CheckpointStore(checkpoints, keep=1, check_lock=run.check_lock)
    late.save(3, {"weights": {"w": torch.ones(2)}}, {})
    with pytest.raises(LockLostError):
        late.wait()
    assert contents(tmp_path) == before


def test_a_checkpoint_that_is_overtaken_half_way_is_never_committed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    lock = hold(storage)
    run = RunDirectory(storage, token=lock.token)

    def overtaken() -> None:
        lock.release()
        hold(storage).release()

    late = CheckpointStore(storage.child("checkpoints"), before_commit=overtaken, check_lock=run.check_lock)
    late.save(3, {"weights": {"w": torch.ones(2)}}, {})
    with pytest.raises(LockLostError):
        late.wait()
    assert late.steps() == []


def test_a_lock_that_is_lost_in_the_background_is_raised_by_the_next_append(tmp_path: Path) -> None:
    lost = threading.Event()

    def check_lock() -> None:
        if lost.is_set():
            raise LockLostError("gone")

    writer = ObjectLogWriter(open_storage(tmp_path), "metrics", check_lock, put_interval_seconds=0.01)
    writer.append({"step": 1})
    writer.flush()
    lost.set()
    writer.append({"step": 2})
    end = time.monotonic() + 5
    while writer._lost is None and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(LockLostError):
        writer.append({"step": 3})
    with pytest.raises(LockLostError):
        writer.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step":1}\n'


def test_a_closed_log_of_a_lost_run_releases_its_file(tmp_path: Path) -> None:
    def check_lock() -> None:
        if lost:
            raise LockLostError("gone")

    lost: list[bool] = []
    writer = FileLogWriter(open_storage(tmp_path), "metrics", check_lock)
    writer.append({"step": 1})
    lost.append(True)
    with pytest.raises(LockLostError):
        writer.append({"step": 2})
    with pytest.raises(LockLostError):
        writer.close()
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step":1}\n'
