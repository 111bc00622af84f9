"""Heartbeats of workers: who is silent, how far the run was, when a group stalls."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from yolofleet.tracking.json_lines import Row
from yolofleet.training.loop.worker_progress import WorkerProgress
from yolofleet.training.supervision.heartbeats import (
    HeartbeatBoard,
    StallWarning,
    WorkerStatus,
    newest_progress,
    report_heartbeats,
    silent_workers,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def worker(rank: int, group: str = "first", step: int = 0) -> WorkerStatus:
    return WorkerStatus(group=group, rank=rank, num_workers=2, process=10 + rank, node="n", host="10.0.0.1", step=step)


def test_the_process_of_the_board_does_not_import_torch() -> None:
    """It is started beside the workers of every run: torch would take it 200 MB, and seconds of the node's cores."""
    code = f"import sys, {HeartbeatBoard.__module__}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_worker_that_stops_reporting_is_silent() -> None:
    clock = Clock()
    board = HeartbeatBoard(clock)
    board.begin("first")
    board.report(worker(0))
    board.report(worker(1))
    clock.now += 30
    board.report(worker(0, step=4))
    now, workers = board.workers()
    assert [late.rank for late in silent_workers(now, workers, 20)] == [1]
    assert silent_workers(now, workers, 40) == []


def test_the_progress_of_a_run_is_the_first_workers_last_report() -> None:
    clock = Clock()
    board = HeartbeatBoard(clock)
    board.begin("first")
    assert newest_progress(*board.workers()) is None
    board.report(worker(1, step=9))
    board.report(worker(0, step=8))
    clock.now += 12
    found = newest_progress(*board.workers(), wall_clock=lambda: 1000.0)
    assert found is not None and (found.step, found.at) == (8, 988.0)


def test_a_request_to_leave_reaches_everyone_of_the_group_and_no_other() -> None:
    board = HeartbeatBoard(Clock())
    board.begin("first")
    assert board.report(worker(0)) is None
    board.ask_to_leave("a node goes")
    board.ask_to_leave("another reason")
    assert [board.report(worker(rank)) for rank in (0, 1)] == ["a node goes"] * 2
    board.begin("second")
    assert board.report(worker(0)) == "another group has replaced it"
    assert board.report(replace(worker(0), group="second")) is None
    assert len(board.workers()[1]) == 1


def test_rows_reach_the_driver_once_and_in_order_however_many_heartbeats_fail(monkeypatch: Any) -> None:
    """A fake of Ray at the process's edge: an actor's method is called, or its answer does not come."""
    board, num_calls = HeartbeatBoard(), itertools.count()
    board.begin("first")

    def get(answer: WorkerStatus, timeout: float) -> str | None:
        if next(num_calls) % 3:
            raise TimeoutError
        return board.report(answer)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=get))
    monkeypatch.setattr("yolofleet.training.supervision.heartbeats.REPORT_SECONDS", 0.002)
    progress = WorkerProgress()
    handle = SimpleNamespace(report=SimpleNamespace(remote=lambda status: status))
    taken: list[Row] = []
    with report_heartbeats(handle, worker(0), progress, torch.device("cpu")):
        for step in range(200):
            progress.report({"step": step})
            progress.report({"kind": "checkpoint", "step": step})
            time.sleep(0.001)
            if step % 7 == 0:
                taken += board.take_rows()
    while progress.unsent:  # the heartbeat at the end may have failed, too
        with report_heartbeats(handle, worker(0), progress, torch.device("cpu")):
            pass
    taken += board.take_rows()
    assert [row["step"] for row in taken] == [step for step in range(200) for _ in range(2)]
    assert board.take_rows() == [] and progress.metrics == {"step": 199}
    assert board.workers()[1][0].rows == (), "they are kept once"


class Watched:
    """Two workers, a board with a clock of its own, and the events."""

    def __init__(self) -> None:
        self.now = 100.0
        self.board = HeartbeatBoard(lambda: self.now)
        self.board.begin("g")
        self.events: list[dict[str, Any]] = []
        self.warning = StallWarning(lambda kind, **fields: self.events.append({"kind": kind, **fields}), 40.0)

    def report(self, rank: int, step: int, silence_seconds: float) -> None:
        worker = WorkerStatus("g", rank, 2, process=10 + rank, node="n", host="10.0.0.1", step=step)
        self.board.report(replace(worker, silence_seconds=silence_seconds))

    def update(self) -> None:
        self.warning.update(*self.board.workers())


def test_one_worker_that_is_stopped_is_named_once_and_its_return_too() -> None:
    watched = Watched()
    watched.report(0, 5, 0.1)
    watched.report(1, 5, 0.1)
    for second in range(1, 16):
        watched.now += 1
        watched.report(0, 5, float(second))
        watched.update()
    [stalled] = watched.events
    assert stalled["kind"] == "stalled" and stalled["step"] == 5 and 10 < stalled["silence_seconds"] < 12
    assert "rank 1 (process 11 on 10.0.0.1)" in stalled["reason"] and "rank 0" not in stalled["reason"]
    watched.report(0, 6, 0.1)
    watched.report(1, 6, 0.1)
    watched.update()
    assert watched.events[1:] == [{"kind": "moving", "step": 6, "seconds": 15.0}]


def test_workers_that_all_wait_are_reported_as_such() -> None:
    watched = Watched()
    for rank in (0, 1):
        watched.report(rank, 3, 12.0)
    watched.update()
    assert watched.events[0]["reason"] == "all of them answer, and wait"


def test_workers_that_begin_or_make_progress_do_not_stall() -> None:
    watched = Watched()
    watched.update()  # no worker yet
    watched.report(0, 0, 30.0)
    watched.update()  # the other one has not reported
    watched.report(1, 0, 0.0)
    watched.update()  # the other one does not train yet
    watched.report(1, 0, 9.0)
    watched.update()  # the slowest micro-batch of a big model
    assert watched.events == []
