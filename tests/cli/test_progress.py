from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from yolofleet.cli.progress import _Lines, format_row, is_shown, show_run
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory


def test_counts_of_skipped_samples_are_no_step() -> None:
    assert not is_shown({"step": 8, "skipped_image_damaged": 3})
    for row in ({"step": 8, "loss": 0.1}, {"step": 8, "val_AP": None}, {"problem": "the network is away"}):
        assert is_shown(row) and format_row(row)


def test_rows_and_problems_are_shown_as_they_arrive_and_the_last_ones_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: deque[dict[str, Any]] = deque()
    with RunDirectory(open_storage(tmp_path), on_row=rows.append) as run, show_run(rows, 10, 0):
        run.append_event("start", step=0, workers=2)
        run.append_event("waiting", reason="for nodes")
        end = time.monotonic() + 30
        while rows and time.monotonic() < end:  # a thread takes and shows them
            time.sleep(0.01)
        assert not rows
        run.append_event("checkpoint", step=3, seconds=0.1)
        run.append_event("start", step=3, workers=1)
        run.append_event("failed", reason="is said by the command itself")
        run.append_metrics({"step": 10, "val_AP50": 0.5, "val_AP": 0.25})
    assert capsys.readouterr().err.splitlines() == [
        "for nodes",
        "the workers started again from step 3 with 1 worker",
        "step 10: validation AP50 0.5000, AP 0.2500",
    ]


def test_workers_start_again_also_where_those_that_died_had_not_reported_their_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: deque[dict[str, Any]] = deque()
    with RunDirectory(open_storage(tmp_path), on_row=rows.append) as run, show_run(rows, 10, 0):
        run.append_event("starting", workers=2)
        run.append_event("failure", failure="worker", reason="rank 1 died", reached=2, again=True)
        run.append_event("start", step=2, workers=2)
    assert "the workers started again from step 2 with 2 workers" in capsys.readouterr().err.splitlines()


def test_a_restart_does_not_change_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("yolofleet.cli.progress.time.monotonic", lambda: now)
    lines = _Lines(100)
    for second, row in [
        (0, {"step": 1, "loss": 0.1}),
        (20, {"step": 21, "loss": 0.1}),
        (400, {"problem": "a worker died"}),
        (420, {"step": 22, "loss": 0.1}),
        (440, {"step": 42, "loss": 0.1}),
    ]:
        now = float(second)
        lines.show(row)
    shown = capsys.readouterr().err.splitlines()
    assert "(79 s left)" in shown[1] and "(58 s left)" in shown[-1]
