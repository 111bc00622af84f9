"""What a storage says of its runs: from one listing and a bounded number of requests a run, without waiting for any."""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.conftest import MemoryStorage
from yolofleet.core.errors import UserError
from yolofleet.storage import ObjectInfo
from yolofleet.tracking.json_lines import encode_row, group_parts, parts_by_log, read_end
from yolofleet.tracking.run_catalog import (
    INTERRUPTED,
    SILENT_SECONDS,
    StoredRun,
    catalog,
    gather_figures,
    read_catalog,
    read_figures,
    summarize_figures,
)


def at(second: int) -> str:
    return f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}.000Z"


def event(second: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"time": at(second), "kind": kind, **fields}


def row(second: int, step: int, **fields: Any) -> dict[str, Any]:
    return {"time": at(second), "step": step, **fields}


def written(storage: MemoryStorage, name: str, events: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    storage.put(f"{name}/job.yaml", b"name: x\n")
    storage.put(f"{name}/events.jsonl", b"".join(map(encode_row, events)))
    storage.put(f"{name}/metrics.jsonl", b"".join(map(encode_row, rows)))


def test_a_listing_tells_runs_searches_and_leftovers_from_all_else() -> None:
    storage = MemoryStorage()
    for key in (
        "a/job.yaml", "b/search.yaml", "b/trials/0001/job.yaml", "b/trials/0002/job.yaml", "c/lock/00000001.json",
        "c/checkpoints/step-1/state.json", "gone/lock/00000003.json", "datasets/manifest.json", "_mlflow/mlflow.db",
        "loose.txt",
    ):  # fmt: skip
        storage.put(key, b"12345")
    found = {run.name: run for run in catalog(storage)}
    assert {name: run.kind for name, run in found.items()} == {"a": "run", "b": "search", "c": "leftover"}
    assert found["b"].num_trials == 2 and found["b"].size_bytes == 15
    assert found["c"].usage() == {"lock": 5, "checkpoints": 5}
    with pytest.raises(UserError, match="is the directory of one run; give the storage"):
        catalog(storage.child("a"))


def test_figures_of_a_running_run_have_a_speed_of_this_start_only() -> None:
    events = [
        event(0, "start", step=0, num_steps=100),
        event(20, "stopped"),
        event(500, "start", step=20, num_steps=100),
    ]
    late = row(505, 10, val_AP50=0.5)  # an evaluation beside the training, of an earlier step
    rows = [row(10, 10, loss=1.0), row(20, 20, val_AP=0.25), late, row(510, 30, loss=1.0), row(530, 40, loss=1.0)]
    figures = summarize_figures(events, rows)
    assert (figures.state, figures.step, figures.planned_steps, figures.ap) == ("RUNNING", 40, 100, 0.25)
    assert figures.eta_seconds == pytest.approx(60 / (10 / 20))
    assert summarize_figures(events[:2], rows[:2]).eta_seconds is None, "a run that was stopped has no end to wait for"


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        ([], "NEW"),
        (["waiting"], "WAITING"),
        (["waiting", "starting"], "NEW"),
        (["waiting", "starting", "start"], "RUNNING"),
        (["start", "failure", "waiting"], "WAITING"),
        (["start", "waiting", "stopped"], "KILLED"),
        (["start", "end"], "FINISHED"),
        (["failed"], "FAILED"),
    ],
)
def test_the_state_is_that_of_the_newest_decisive_event(kinds: list[str], state: str) -> None:
    assert summarize_figures([event(n, kind) for n, kind in enumerate(kinds)], []).state == state


@pytest.mark.parametrize(
    ("kinds", "state"), [(["start"], "RUNNING"), (["waiting"], "WAITING"), (["start", "failure", "waiting"], "WAITING")]
)
def test_a_run_whose_lock_nobody_renews_is_interrupted_and_one_without_a_lock_is_not_doubted(
    kinds: list[str], state: str
) -> None:
    storage = MemoryStorage()
    written(storage, "a", [event(n, kind, step=0, num_steps=9) for n, kind in enumerate(kinds)], [])
    logs = catalog(storage)[0].logs()
    directory = storage.child("a")
    assert read_figures(directory, logs).state == state
    assert read_figures(directory, logs, lock_renewed_at=time.time()).state == state
    assert read_figures(directory, logs, lock_renewed_at=time.time() - SILENT_SECONDS - 1).state == INTERRUPTED


def test_a_trial_whose_runs_fail_one_by_one_has_ended_once() -> None:
    storage = MemoryStorage()
    ends = [event(number, "ended", trial=trial, reason="failed: x") for number, trial in enumerate((0, 1, 1, 1))]
    storage.put("search.yaml", b"name: x\n")
    storage.put("trials.jsonl", b"".join(map(encode_row, ends)))
    assert read_figures(storage, parts_by_log(storage, "trials")).step == 2


def test_a_run_costs_one_request_a_log_however_many_objects_it_has() -> None:
    storage = MemoryStorage()
    for name in ("a", "b", "c"):
        written(storage, name, [event(0, "start", step=0, num_steps=9)], [row(1, 1)])
        for number in range(50):
            storage.put(f"{name}/checkpoints/step-{number}/model.safetensors", b"x")
    runs = catalog(storage)
    assert storage.requests == ["LIST "]
    children: list[MemoryStorage] = []
    original = storage.child

    def child(prefix: str) -> Any:
        children.append(original(prefix))  # type: ignore[arg-type]
        return children[-1]

    storage.child = child  # type: ignore[method-assign]
    read_catalog(storage, runs)
    assert [len(entry.requests) for entry in children] == [2, 2, 2]


def test_the_released_models_ap_counts_once_the_run_is_finished() -> None:
    storage = MemoryStorage()
    written(storage, "a", [event(0, "start", step=0, num_steps=1), event(9, "end")], [row(1, 1, val_AP=0.1)])
    logs = catalog(storage)[0].logs()
    assert read_figures(storage.child("a"), logs).ap == 0.1
    storage.put("a/report/release.json", json.dumps({"figures": {"AP": 0.4}}).encode())
    assert read_figures(storage.child("a"), logs).ap == 0.4


def test_what_fails_or_hangs_is_named_and_not_waited_for() -> None:
    storage = MemoryStorage()
    written(storage, "a", [event(0, "start", step=0, num_steps=9)], [row(1, 1)])
    over = threading.Event()

    def fail() -> Any:
        raise UserError("s3://away: got no answer")

    good, bad, late = gather_figures(
        [lambda: read_figures(storage.child("a"), catalog(storage)[0].logs()), fail, over.wait], 1.0
    )
    over.set()
    assert (good.state, good.problem) == ("RUNNING", None)
    assert (bad.state, bad.problem) == ("UNKNOWN", "s3://away: got no answer")
    assert (late.state, late.problem) == ("UNKNOWN", "gave no answer within 1 s")


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    cuts=st.sets(st.integers(1, 29), max_size=3),
    most_bytes=st.integers(1, 400),
)
def test_the_end_of_a_log_is_whole_rows_up_to_its_last(lengths: list[int], cuts: set[int], most_bytes: int) -> None:
    """Wherever the log is cut into parts, and however few bytes are read."""
    storage = MemoryStorage()
    rows = [{"n": number, "x": "y" * length} for number, length in enumerate(lengths)]
    borders = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    for index, (start, end) in enumerate(itertools.pairwise(borders)):
        storage.put("log.jsonl" if index == 0 else f"log-{index:05d}.jsonl", b"".join(map(encode_row, rows[start:end])))
    parts = parts_by_log(storage, "log")["log"]
    found = read_end(storage, parts, most_bytes)
    assert found == rows[len(rows) - len(found) :]
    assert read_end(storage, parts, 10**6) == rows
    assert len(found) == len(rows) or sum(len(encode_row(entry)) for entry in rows[-len(found) - 1 :]) >= most_bytes


def test_usage_and_logs_are_of_the_run_itself() -> None:
    entries = tuple(ObjectInfo(key, 2) for key in ("events.jsonl", "metrics-00001.jsonl", "trials/1/events.jsonl"))
    run = StoredRun("a", "search", entries)
    assert sorted(run.logs()) == ["events", "metrics"]
    assert run.usage() == {"records": 4, "trials": 2}
    assert group_parts([]) == {}
