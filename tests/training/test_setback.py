from __future__ import annotations

import time
from pathlib import Path

import pytest

from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.worker_group import Pulse, Reached, WorkerGroup
from yolofleet.training.metrics.restart_cost import Setback


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(open_storage(tmp_path))


def regained(run: RunDirectory) -> list[dict]:
    return [event for event in run.events() if event["kind"] == "regained"]


def test_a_fresh_run_has_lost_nothing(run: RunDirectory) -> None:
    setback = Setback(run, 0, WorkerGroup())
    for step in range(1, 4):
        setback.observe(step)
    assert regained(run) == []


def test_what_a_failure_cost_is_noted_once_when_the_run_is_past_where_it_was(run: RunDirectory) -> None:
    run.append_event("start", step=0)
    now = time.time()
    for step in (5, 10):
        run.append_metrics({"step": step, "loss": 1.0})
    clock = iter([now + 10, now + 20, now + 25, now + 60, now + 60]).__next__
    setback = Setback(run, 4, WorkerGroup(), clock)
    setback.begin()
    for step in range(5, 13):
        setback.observe(step)
    (event,) = regained(run)
    assert (event["step"], event["steps_redone"]) == (11, 6)
    assert event["seconds_lost"] == pytest.approx(60, abs=2)
    assert event["first_step_seconds"] == pytest.approx(5, abs=0.1)
    assert event["seconds_since_start"] == pytest.approx(40, abs=0.1)


def test_what_the_driver_last_heard_is_finer_than_the_rows(run: RunDirectory) -> None:
    run.append_event("start", step=0)
    run.append_metrics({"step": 10, "loss": 1.0})
    group = WorkerGroup(pulse=Pulse(Reached(17, time.time())))
    setback = Setback(run, 12, group)
    setback.observe(18)
    assert regained(run)[0]["steps_redone"] == 5


def test_the_pause_of_a_run_that_was_stopped_on_purpose_is_not_lost(run: RunDirectory) -> None:
    run.append_event("start", step=0)
    run.append_metrics({"step": 10, "loss": 1.0})
    run.append_event("stopped", reason="Ctrl-C")
    later = time.time() + 86400
    clock = iter([later, later + 3, later + 3, later + 3]).__next__
    setback = Setback(run, 8, WorkerGroup(), clock)
    setback.observe(11)
    assert regained(run)[0]["seconds_lost"] == pytest.approx(3)
