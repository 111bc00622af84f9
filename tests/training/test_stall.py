from __future__ import annotations

from dataclasses import replace
from typing import Any

from yolofleet.training.supervision.heartbeats import Attendance, Member, Stall


class Watched:
    """Two workers, a list with a clock of its own, and what was noted."""

    def __init__(self) -> None:
        self.now = 100.0
        self.attendance = Attendance(lambda: self.now)
        self.attendance.begin("g")
        self.events: list[dict[str, Any]] = []
        self.stall = Stall(lambda kind, **fields: self.events.append({"kind": kind, **fields}), 40.0)

    def report(self, rank: int, step: int, silence_seconds: float) -> None:
        member = Member("g", rank, 2, process=10 + rank, node="n", host="10.0.0.1", step=step)
        self.attendance.report(replace(member, silence_seconds=silence_seconds))

    def look(self) -> None:
        self.stall.look(*self.attendance.members())


def test_one_worker_that_is_stopped_is_named_once_and_its_return_too() -> None:
    watched = Watched()
    watched.report(0, 5, 0.1)
    watched.report(1, 5, 0.1)
    for second in range(1, 16):
        watched.now += 1
        watched.report(0, 5, float(second))
        watched.look()
    [stalled] = watched.events
    assert stalled["kind"] == "stalled" and stalled["step"] == 5 and 10 < stalled["silence_seconds"] < 12
    assert "rank 1 (process 11 on 10.0.0.1)" in stalled["reason"] and "rank 0" not in stalled["reason"]
    watched.report(0, 6, 0.1)
    watched.report(1, 6, 0.1)
    watched.look()
    assert watched.events[1:] == [{"kind": "moving", "step": 6, "seconds": 15.0}]


def test_workers_that_all_wait_are_told_of_as_such() -> None:
    watched = Watched()
    for rank in (0, 1):
        watched.report(rank, 3, 12.0)
    watched.look()
    assert watched.events[0]["reason"] == "all of them answer, and wait"


def test_no_stall_is_seen_in_who_begins_who_rests_or_who_moves() -> None:
    watched = Watched()
    watched.look()  # nobody yet
    watched.report(0, 0, 30.0)
    watched.look()  # the other one has not reported
    watched.report(1, 0, 0.0)
    watched.look()  # the other one does not train yet
    watched.report(1, 0, 9.0)
    watched.look()  # the slowest micro-batch of a big model
    assert watched.events == []
