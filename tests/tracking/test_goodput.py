"""The summary of a run from its events, and the times of its restarts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.tracking.goodput import (
    PAUSED,
    account_rows,
    format_event,
    gpu_hours_by_owner,
    summarize_run,
)
from yolofleet.tracking.restarts import Restart, restarts


def event(second: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"time": datetime.fromtimestamp(1_000_000 + second, UTC).isoformat(), "kind": kind, **fields}


def test_the_summary_of_a_run_that_was_killed_and_stopped() -> None:
    summary = summarize_run(
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
    assert (summary.starts, summary.failures, summary.steps_redone) == (3, {"worker": 1}, 1)
    assert (summary.seconds_lost, summary.seconds_trained, summary.goodput) == (20.0, 200.0, 0.9)
    assert [line.partition(" ")[2] for line in summary.history] == [
        "worker failure at step 9: rank 1 died",
        "step 10 reached again: 1 step done twice, 20.0 s lost",
        "stopped: Ctrl-C",
    ]


def test_a_running_run_is_counted_to_its_newest_row() -> None:
    summary = summarize_run([event(0, "start"), event(10, "checkpoint", step=4)], [event(3, ""), event(40, "")])
    assert (summary.seconds_trained, summary.goodput, summary.history) == (40.0, 1.0, [])


def test_workers_cost_what_they_cost_until_the_next_start_or_the_end() -> None:
    two = {"workers": 2, "gpus_per_worker": 4.0, "price_per_hour": 30.0, "num_steps": 100}
    one = two | {"workers": 1, "price_per_hour": 40.0}
    events = [
        event(0, "start", **two),
        event(1800, "failure", failure="preemption"),
        event(3600, "start", **one),
        event(5400, "stopped"),
        event(90000, "start", **one),
    ]
    rows = [event(90600, "", step=40, loss=1.0), event(91800, "", step=60, loss=1.0)]
    summary = summarize_run(events, rows)
    assert (summary.worker_hours, summary.gpu_hours) == (2 + 0.5 + 0.5, 12)
    assert summary.cost == 2 * 30 + 0.5 * 40 + 0.5 * 40
    assert summary.forecast_cost == summary.cost + round(40 / 60 * 40, 2)  # 40 more steps of 60 s each
    assert summarize_run(events[:4]).forecast_cost == summarize_run(events[:4]).cost == 80
    assert summarize_run([event(0, "start", workers=2), event(3600, "end")]).cost is None
    assert summarize_run([event(0, "start")], rows).forecast_cost is None, "an older run does not say how long it is"


STARTS = {"workers": 2, "gpus_per_worker": 4.0, "price_per_hour": 30.0}


def test_accounts_are_told_at_checkpoints_and_never_change_afterwards() -> None:
    events = [
        event(0, "start", **STARTS),
        event(1800, "checkpoint", step=10),
        event(3600, "failure", failure="worker"),
        event(5400, "start", **STARTS | {"workers": 1}),
        event(9000, "checkpoint", step=20),
        event(9000, "stopped"),
        event(90000, "start", **STARTS),
        event(93600, "end", step=30),
    ]
    rows = [*account_rows(events)]
    assert [(row["step"], row["worker_hours"], row["gpu_hours"], row["cost"]) for row in rows] == [
        (10, 1, 4, 30), (20, 4, 16, 120), (30, 6, 24, 180),
    ]  # fmt: skip
    for end in range(len(events)):
        assert [*account_rows(events[:end])] == rows[: len([*account_rows(events[:end])])]
    summary = summarize_run(events)
    assert (rows[-1]["worker_hours"], rows[-1]["cost"]) == (summary.worker_hours, summary.cost)
    assert "cost" not in next(account_rows([event(0, "start", workers=1), event(9, "checkpoint", step=1)]))


@given(
    st.lists(st.tuples(st.floats(1, 9000), st.sampled_from(["start", "stopped", "failure", "checkpoint"])), max_size=12)
)
def test_windows_that_lie_side_by_side_add_up_to_the_whole(steps: list[tuple[float, str]]) -> None:
    events, now = [event(0, "queued", user="ada", project=None)], 0.0
    for seconds, kind in steps:
        now += seconds
        events.append(event(now, kind, **(STARTS if kind == "start" else {})))
    until = 1_000_000 + now + 100
    cuts = [999_000.0, *(1_000_000 + now * share for share in (0.3, 0.7)), until]

    def hours(since: float, until: float) -> float:
        return gpu_hours_by_owner(events, since=since, until=until).get(("ada", None), 0.0)

    whole = hours(cuts[0], until)
    later = [hours(cut, until) for cut in cuts]
    assert later == sorted(later, reverse=True) and later[0] == whole and later[-1] == 0
    assert whole == pytest.approx(summarize_run(events, [event(now + 100, "")]).gpu_hours, abs=1e-3)


def test_hours_belong_to_who_sent_the_run_at_that_time() -> None:
    events = [
        event(0, "queued", user="ada", project="birds"),
        event(0, "start", **STARTS),
        event(1800, "checkpoint"),  # then its command was killed
        event(50_000, "queued", user="eve", project=None),
        event(50_400, "start", **STARTS),
        event(54_000, "end"),
    ]
    found = gpu_hours_by_owner(events, since=0, until=2_000_000)
    assert found == {("ada", "birds"): 4.0, ("eve", None): 8.0}
    trial = gpu_hours_by_owner(events[1:3], since=0, until=1_003_600, sender=events[0])
    assert trial == {("ada", "birds"): 8.0}, "it was last alive an hour after its start"


def test_a_wait_and_the_night_after_a_killed_command_cost_nothing() -> None:
    events = [
        event(0, "start", **STARTS),
        event(1800, "failure", failure="preemption"),
        event(3600, "waiting", reason="no nodes"),
        event(40_000, "start", **STARTS),
        event(43_600, "checkpoint", step=10),  # then its command was killed
        event(90_000, "command"),
        event(90_060, "start", **STARTS),
        event(93_660, "end", step=20),
    ]
    summary = summarize_run(events)
    assert (summary.seconds_trained, summary.worker_hours, summary.gpu_hours, summary.cost) == (3 * 3600, 6, 24, 180)
    assert [*account_rows(events)][-1]["cost"] == 180
    assert gpu_hours_by_owner(events, since=0, until=2_000_000) == {(None, None): 24}
    assert summarize_run([*events, event(93_700, "")]).goodput == 1.0
    lost = event(90_070, "regained", seconds_lost=46_470.0)
    assert summarize_run(sorted([*events, lost], key=lambda row: str(row["time"]))).goodput == pytest.approx(
        1 - 46_470 / 93_600, abs=1e-3
    ), "the night is lost time: what was lost is a share of all that passed"


def test_the_pause_of_a_trial_costs_nothing_whether_or_not_it_continues() -> None:
    trained = [event(0, "command"), event(0, "start", **STARTS), event(600, "left", step=10, reason=PAUSED)]
    stopped = [*trained, event(36_600, "stopped", reason="not among the best of rung 0")]
    continued = [event(36_000, "command"), event(36_000, "start", **STARTS), event(36_600, "end", step=20)]
    for events, seconds in ((trained, 600), (stopped, 600), ([*trained, *continued], 1200)):
        summary = summarize_run(events, [event(590, "", step=10, loss=1.0)])
        assert (summary.seconds_trained, summary.goodput) == (seconds, 1.0)
        assert summary.worker_hours == pytest.approx(2 * seconds / 3600, abs=1e-3)
        assert summary.cost == summary.forecast_cost == pytest.approx(60 * seconds / 3600, abs=0.01)
        (hours,) = gpu_hours_by_owner(events, since=0, until=2_000_000).values()
        assert hours == pytest.approx(8 * seconds / 3600)
    assert [row["gpu_hours"] for row in account_rows([*trained, *continued])] == [pytest.approx(8 * 1200 / 3600)]


def test_nothing_yet() -> None:
    summary = summarize_run([])
    assert (summary.starts, summary.goodput) == (0, None)


def test_events_of_other_versions_are_shown_as_they_are() -> None:
    assert format_event(event(0, "checkpoint")) is None
    assert "unknown_field" in str(format_event(event(0, "failure", unknown_field=3)))
    assert len(str(format_event(event(0, "failed", reason="x" * 5000)))) < 300


RESTART = [
    event(50, "failure", failure="worker"),
    event(51.5, "starting", workers=2),
    event(60, "start", prepared_seconds=2.5),
    event(61, "regained", first_step_seconds=0.5),
]


def test_a_restart_is_split_between_own_code_and_ray() -> None:
    first_start = [event(0, "starting", workers=2), event(9, "start", prepared_seconds=2.0)]
    assert restarts([*first_start, *RESTART]) == [Restart(own_seconds=4.5, ray_seconds=6.0, waited_seconds=0.0)]
    assert restarts(first_start) == []
    failed_itself = [event(55, "failure", failure="start"), event(70, "starting"), *RESTART[2:]]
    assert len(restarts([*RESTART[:2], *failed_itself])) == 1


def test_waiting_for_nodes_and_storage_counts_apart() -> None:
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
    again = [*events[:2], event(60, "waiting", reason="another"), event(74, "admitted"), *events[2:]]
    assert restarts(again)[0] == found, "it waits from the first reason on"
    without = restarts([row for row in events if row["kind"] != "storage_back"])[0]
    assert without == Restart(own_seconds=11.5, ray_seconds=7.0, waited_seconds=22.0)


def test_an_outage_of_another_time_changes_nothing() -> None:
    assert restarts([event(40, "storage_back", seconds=20.0), *RESTART]) == restarts(RESTART)
