from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from yolofleet.training.loop.worker_group import Pulse
from yolofleet.training.supervision.heartbeats import Attendance, Member, reached, silent_members
from yolofleet.training.supervision.watches import examined_and_killed


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def member(rank: int, group: str = "first", step: int = 0) -> Member:
    return Member(group=group, rank=rank, num_workers=2, process=10 + rank, node="n", host="10.0.0.1", step=step)


def test_who_stops_reporting_is_silent() -> None:
    clock = Clock()
    attendance = Attendance(clock)
    attendance.begin("first")
    attendance.report(member(0))
    attendance.report(member(1))
    clock.now += 30
    attendance.report(member(0, step=4))
    now, members = attendance.members()
    assert [found.rank for found in silent_members(now, members, 20)] == [1]
    assert silent_members(now, members, 40) == []


def test_how_far_the_run_was_is_what_the_first_worker_said_and_when() -> None:
    clock = Clock()
    attendance = Attendance(clock)
    attendance.begin("first")
    assert reached(*attendance.members()) is None
    attendance.report(member(1, step=9))
    attendance.report(member(0, step=8))
    clock.now += 12
    found = reached(*attendance.members(), wall_clock=lambda: 1000.0)
    assert found is not None and (found.step, found.at) == (8, 988.0)


def test_a_request_to_leave_reaches_everyone_of_the_group_and_no_other() -> None:
    attendance = Attendance(Clock())
    attendance.begin("first")
    assert attendance.report(member(0)) is None
    attendance.ask_to_leave("a node goes")
    attendance.ask_to_leave("another reason")
    assert [attendance.report(member(rank)) for rank in (0, 1)] == ["a node goes"] * 2
    attendance.begin("second")
    assert attendance.report(member(0)) == "another group took its place"
    assert attendance.report(replace(member(0), group="second")) is None
    assert len(attendance.members()[1]) == 1


def test_the_first_reason_to_leave_counts() -> None:
    pulse = Pulse()
    pulse.ask_to_leave("one")
    pulse.ask_to_leave("two")
    assert pulse.leave_reason == "one"


def test_a_stopped_process_is_looked_at_and_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.send_signal(signal.SIGSTOP)
    while "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text():
        time.sleep(0.01)
    told = examined_and_killed(process.pid)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert "State:\tT (stopped)" in told and told.endswith("killed")
    assert "py-spy" in told or "Thread" in told
    assert examined_and_killed(process.pid).endswith("is gone already")
