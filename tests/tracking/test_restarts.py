from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from yolofleet.tracking.goodput import Restart, restarts


def event(second: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"time": datetime.fromtimestamp(1_000_000 + second, UTC).isoformat(), "kind": kind, **fields}


RESTART = [
    event(50, "failure", failure="worker"),
    event(51.5, "starting", workers=2),
    event(60, "start", prepared_seconds=2.5),
    event(61, "regained", first_step_seconds=0.5),
]


def test_a_restart_is_split_between_us_and_ray() -> None:
    first_start = [event(0, "starting", workers=2), event(9, "start", prepared_seconds=2.0)]
    assert restarts([*first_start, *RESTART]) == [Restart(own_seconds=4.5, ray_seconds=6.0, waited_seconds=0.0)]
    assert restarts(first_start) == []
    failed_itself = [event(55, "failure", failure="start"), event(70, "starting"), *RESTART[2:]]
    assert len(restarts([*RESTART[:2], *failed_itself])) == 1


def test_nodes_and_storage_that_were_waited_for_are_of_others_making() -> None:
    events = [
        event(50, "failure", failure="worker"),
        event(51, "waiting"),
        event(75, "starting", workers=2, settled_seconds=2.0),
        event(90, "start", prepared_seconds=8.0),
        event(95, "storage_back", seconds=10.0),
        event(96, "storage_back", seconds=10.5),
        event(97, "regained", first_step_seconds=0.5),
    ]
    found = restarts(events)[0]
    assert found == Restart(own_seconds=6.0, ray_seconds=7.0, waited_seconds=27.5)  # 22 s for nodes, 5.5 for storage
    without = restarts([row for row in events if row["kind"] != "storage_back"])[0]
    assert without == Restart(own_seconds=11.5, ray_seconds=7.0, waited_seconds=22.0)


def test_an_outage_of_another_time_changes_nothing() -> None:
    assert restarts([event(40, "storage_back", seconds=20.0), *RESTART]) == restarts(RESTART)
