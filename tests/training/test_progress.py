"""What a restart cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from yolofleet.storage import open_storage
from yolofleet.tracking.goodput import PAUSED
from yolofleet.tracking.json_lines import seconds_of
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.progress import RestartCost
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.loop.worker_progress import DRIVER_NODE_ENDS, KnownProgress, WorkerProgress


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(open_storage(tmp_path))


def regained(run: RunDirectory) -> list[dict]:
    return [event for event in run.events() if event["kind"] == "regained"]


def test_a_fresh_run_has_lost_nothing(run: RunDirectory) -> None:
    cost = RestartCost(run, 0, WorkerGroup())
    for step in range(1, 4):
        cost.observe(step)
    assert regained(run) == []


def test_the_cost_of_a_failure_is_recorded_once_the_run_is_further_than_before(run: RunDirectory) -> None:
    run.append_event("start", step=0)
    now = time.time()
    for step in (5, 10):
        run.append_metrics({"step": step, "loss": 1.0})
    clock = iter([now + 10, now + 20, now + 25, now + 60, now + 60]).__next__
    cost = RestartCost(run, 4, WorkerGroup(), clock)
    cost.begin()
    for step in range(5, 13):
        cost.observe(step)
    (event,) = regained(run)
    assert (event["step"], event["steps_redone"]) == (11, 6)
    assert event["seconds_lost"] == pytest.approx(60, abs=2)
    assert event["first_step_seconds"] == pytest.approx(5, abs=0.1)
    assert event["seconds_since_start"] == pytest.approx(40, abs=0.1)


def test_the_last_heartbeat_is_more_precise_than_the_rows(run: RunDirectory) -> None:
    run.append_event("start", step=0)
    run.append_metrics({"step": 10, "loss": 1.0})
    group = WorkerGroup(progress=WorkerProgress(KnownProgress(17, time.time())))
    cost = RestartCost(run, 12, group)
    cost.observe(18)
    assert regained(run)[0]["steps_redone"] == 5


def test_a_start_that_fails_before_it_is_as_far_again_keeps_what_was_reached(run: RunDirectory) -> None:
    run.append_event("start", step=0)
    run.append_metrics({"step": 10, "loss": 1.0})
    (died,) = run.metrics()
    for last in (6, 4, 12):  # only the last start comes as far again
        later = time.time() + 60
        cost = RestartCost(run, 2, WorkerGroup(), lambda now=later: now)
        run.truncate_metrics_after(2)
        run.append_event("start", step=2, **cost.reached)
        for step in range(3, last + 1):
            run.append_metrics({"step": step, "loss": 1.0})
            cost.observe(step)
    (event,) = regained(run)
    assert (event["step"], event["steps_redone"]) == (11, 8)
    assert event["seconds_lost"] == pytest.approx(later - seconds_of(died), abs=0.01)
    assert RestartCost(run, 12, WorkerGroup()).reached["reached"] == 12


def test_the_pause_of_a_run_that_was_stopped_on_purpose_is_not_lost(run: RunDirectory) -> None:
    run.append_event("start", step=0)
    run.append_metrics({"step": 10, "loss": 1.0})
    run.append_event("stopped", reason="Ctrl-C")
    later = time.time() + 86400
    clock = iter([later, later + 3, later + 3, later + 3]).__next__
    cost = RestartCost(run, 8, WorkerGroup(), clock)
    cost.observe(11)
    assert regained(run)[0]["seconds_lost"] == pytest.approx(3)


@pytest.mark.parametrize(
    ("events", "is_lost"),
    [
        ([("left", {"reason": "a node is about to be taken away"}), ("failure", {"failure": "preemption"})], True),
        ([("left", {"reason": "there is room for more workers"}), ("resize", {})], True),
        ([("left", {"reason": DRIVER_NODE_ENDS}), ("stopped", {"is_wilful": False})], True),
        ([("left", {"reason": "SIGTERM"})], True),  # the driver died before it could say that this was wanted
        ([("left", {"reason": "SIGTERM"}), ("stopped", {})], False),
        ([("left", {"reason": PAUSED})], False),  # a search goes on with another trial
        ([("failed", {})], False),
    ],
)
def test_the_time_without_training_is_lost_unless_the_run_was_ended_on_purpose(
    run: RunDirectory, events: list[tuple[str, dict[str, Any]]], is_lost: bool
) -> None:
    run.append_event("start", step=0)
    run.append_metrics({"step": 10, "loss": 1.0})
    for kind, fields in events:
        run.append_event(kind, **fields)
    later = time.time() + 44
    clock = iter([later, later, later + 1, later + 1, later + 1]).__next__
    cost = RestartCost(run, 10, WorkerGroup(), clock)
    cost.observe(11)
    assert regained(run)[0]["seconds_lost"] == pytest.approx(45 if is_lost else 1, abs=0.2)
