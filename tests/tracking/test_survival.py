from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from yolofleet.tracking.goodput import survival, told


def event(second: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"time": datetime.fromtimestamp(1_000_000 + second, UTC).isoformat(), "kind": kind, **fields}


def test_the_account_of_a_run_that_was_killed_and_stopped() -> None:
    account = survival(
        [
            event(0, "start", step=0),
            event(50, "failure", failure="worker", reason="rank 1 died", reached=9, again=True),
            event(60, "start", step=8),
            event(70, "regained", step=10, steps_redone=1, seconds_lost=20.0),
            event(100, "stopped", reason="Ctrl-C"),
            event(5000, "start", step=16),
            event(5100, "end", step=32),
        ]
    )
    assert (account.starts, account.failures, account.steps_redone) == (3, {"worker": 1}, 1)
    assert (account.seconds_lost, account.seconds_trained, account.goodput) == (20.0, 200.0, 0.9)
    assert [line.partition(" ")[2] for line in account.history] == [
        "worker failure at step 9: rank 1 died",
        "step 10 reached again: 1 steps done twice, 20.0 s lost",
        "stopped: Ctrl-C",
    ]


def test_a_run_that_is_going_on_is_counted_to_its_newest_row() -> None:
    account = survival([event(0, "start"), event(10, "checkpoint", step=4)], [event(3, ""), event(40, "")])
    assert (account.seconds_trained, account.goodput, account.history) == (40.0, 1.0, [])


def test_nothing_yet() -> None:
    account = survival([])
    assert (account.starts, account.goodput) == (0, None)


def test_events_of_other_versions_are_told_as_they_are() -> None:
    assert told(event(0, "checkpoint")) is None
    assert "unknown_field" in str(told(event(0, "failure", unknown_field=3)))
    assert len(str(told(event(0, "failed", reason="x" * 5000)))) < 300
