"""What the soak benchmark says of a run can be trusted: planted leaks are found, faults get their costs."""

from __future__ import annotations

import importlib.util
import random
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", Path(__file__).parents[2] / "benchmarks" / "soak.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def test_planted_leaks_are_found(soak: ModuleType) -> None:
    clean = ["job.yaml", "checkpoints/step-4/COMMITTED"]
    assert soak.leaks(0, [], {"yolofleet-old"}, {"yolofleet-old"}, clean, [50, 90, 63, 58, 59, 57, 58, 56]) == []
    assert soak.leaks(0, [], set(), set(), clean, [50, 70, 75, 12]) == ["25 file handles of the command"]
    assert soak.leaks(1, [77], {"yolofleet-ray-1"}, set(), ["probe/1", "model/.tmp-2"], [50, 90]) == [
        "1 placement groups",
        "worker process 77",
        "temporary folder yolofleet-ray-1",
        "40 file handles of the command",
        "object probe/1",
        "object model/.tmp-2",
    ]


def test_a_forgotten_temporary_folder_is_seen(soak: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert soak.temporary_names() == set()
    (tmp_path / "yolofleet-ray-x").mkdir()
    assert soak.temporary_names() == {"yolofleet-ray-x"}


def test_every_kind_comes_as_often_as_every_other(soak: ModuleType) -> None:
    kinds = soak.shuffled_kinds(random.Random(5), rounds=3)
    assert sorted(kinds) == sorted(3 * sys.modules["soak_faults"].KINDS)
    assert len(sys.modules["soak_faults"].KINDS) == 9


def test_a_fault_gets_the_cost_of_the_setback_that_it_caused(soak: ModuleType) -> None:
    def event(second: float, kind: str, **fields: int) -> dict[str, object]:
        return {"time": datetime.fromtimestamp(second, UTC).isoformat(), "kind": kind, **fields}

    events = [
        event(115, "failure"),
        event(130, "failure"),
        event(160, "regained", steps_redone=7),
        event(400, "resize"),
        event(420, "regained", steps_redone=0),
    ]
    faults = [(110.0, "a"), (140.0, "b"), (150.0, "s3_503"), (250.0, "unhurt"), (390.0, "add_node")]
    table = [(kind, cost.get("steps_redone")) for kind, cost in soak.costs(faults, events)]
    assert table == [("a", 7), ("b", 7), ("s3_503", None), ("unhurt", None), ("add_node", 0)]


def test_an_arm_is_told_by_the_runs_own_account(soak: ModuleType) -> None:
    def event(second: float, kind: str, **fields: object) -> dict[str, object]:
        return {"time": datetime.fromtimestamp(second, UTC).isoformat(), "kind": kind, **fields}

    events = [
        event(0, "start"),
        event(110, "failure", failure="preemption"),
        event(130, "regained", steps_redone=0, seconds_lost=20.0),
        event(310, "failure", failure="worker"),
        event(350, "regained", steps_redone=8, seconds_lost=40.0),
        event(400, "end"),
    ]
    arms = sys.modules["soak_arms"]
    rows = [{"step": 60, "time": "1970-01-01T00:06:30+00:00"}]
    found = arms.account([(100.0, "arm"), (300.0, "arm"), (390.0, "arm")], events, rows)
    assert (found["preemptions"], found["setbacks"], found["steps"]) == (3, 2, 60)
    assert (found["wasted_steps_mean"], found["wasted_seconds_mean"], found["wasted_steps_most"]) == (4, 30, 8)
    assert found["goodput"] == 0.85
    lines = arms.table({"announced": found, "periodic": found})
    assert lines[0].split() == ["announced", "periodic"] and lines[1].split() == ["preemptions", "3", "3"]


def test_a_fault_is_visible_by_an_event_of_its_own(soak: ModuleType) -> None:
    def event(second: float, kind: str) -> dict[str, object]:
        return {"time": datetime.fromtimestamp(second, UTC).isoformat(), "kind": kind}

    events = [event(120, "node_gone"), event(125, "failure"), event(160, "storage_back"), event(900, "tracking_away")]
    faults = [(100.0, "remove_node"), (101.0, "remove_node"), (102.0, "kill_worker"), (103.0, "stop_worker")]
    faults += [(150.0, "s3_503"), (200.0, "mlflow_down"), (950.0, "mlflow_down"), (960.0, "corrupt_checkpoint")]
    assert soak.signs(faults, events) == [True, False, True, True, True, False, False, False]
    assert set(sys.modules["soak_faults"].KINDS) == set(sys.modules["soak_account"].SIGNS)
