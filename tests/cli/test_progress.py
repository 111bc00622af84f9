from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from yolofleet.cli.progress import POLL_SECONDS, _Lines, format_row, is_shown, watch_run
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory


def test_counts_of_skipped_samples_are_no_step() -> None:
    assert not is_shown({"step": 8, "skipped_image_damaged": 3})
    for row in ({"step": 8, "loss": 0.1}, {"step": 8, "val_AP": None}, {"problem": "the network is away"}):
        assert is_shown(row) and format_row(row)


def test_an_event_that_arrives_after_a_later_one_is_shown_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(open_storage(tmp_path))
    with watch_run(run, 10, 0):
        run.append_event("waiting", reason="for nodes")
        run.flush()
        time.sleep(2 * POLL_SECONDS)
        late = {"time": "2020-01-01T00:00:00.000Z", "kind": "waiting", "reason": "for the weather"}
        run.storage.put("events.driver.jsonl", json.dumps(late).encode() + b"\n")
    run.close()
    assert capsys.readouterr().err.splitlines() == ["for nodes", "for the weather"]


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
