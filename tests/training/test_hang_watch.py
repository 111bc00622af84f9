from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from yolofleet.storage import open_storage
from yolofleet.training.loop.worker_progress import WorkerProgress
from yolofleet.training.supervision.worker import EXIT_HUNG, end_when_hung

STUCK_IN_A_READ = """
import os, sys
from yolofleet.storage import open_storage
from yolofleet.training.supervision.worker import end_when_hung
from yolofleet.training.loop.worker_progress import WorkerProgress

def read_what_never_comes():
    reading, _ = os.pipe()
    os.read(reading, 1)

progress = WorkerProgress()
with end_when_hung(progress, 0.5, open_storage(sys.argv[1]), rank=1):
    progress.advance(7)
    read_what_never_comes()
"""


def test_a_stuck_read_ends_the_process_and_leaves_its_stack(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STUCK_IN_A_READ, str(tmp_path)], capture_output=True, timeout=60)
    assert done.returncode == EXIT_HUNG
    assert b"read_what_never_comes" in done.stderr
    (stacks,) = (tmp_path / "stacks").iterdir()
    assert stacks.name.startswith("step-7-rank-1-")
    text = stacks.read_text()
    assert "rank 1 in the step after 7" in text and "no progress for 0.5 s" in text
    assert "read_what_never_comes" in text


def test_steps_keep_a_worker_alive_and_the_start_may_take_its_time(tmp_path: Path) -> None:
    progress, ended = WorkerProgress(), threading.Event()
    with end_when_hung(progress, 0.3, open_storage(tmp_path), rank=0, end_process=lambda code: ended.set()):
        time.sleep(0.5)  # no step has begun
        for step in range(12):
            progress.advance(step)
            time.sleep(0.05)
        assert not ended.is_set()
        assert ended.wait(timeout=10)
    assert progress.silence_seconds() == 0


def test_a_storage_that_hangs_too_does_not_keep_the_process(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("yolofleet.training.supervision.worker.STORE_TIMEOUT_SECONDS", 0.1)
    storage = open_storage(tmp_path)
    monkeypatch.setattr(storage, "put", lambda key, data: time.sleep(5))
    progress, ended = WorkerProgress(), threading.Event()
    with end_when_hung(progress, 0.1, storage, rank=0, end_process=lambda code: ended.set()):
        progress.advance(1)
        assert ended.wait(timeout=3)
