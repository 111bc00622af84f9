from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from yolofleet.specs.cluster import ClusterSpec
from yolofleet.storage import open_storage
from yolofleet.tracking.goodput import format_event
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.supervision.placement_groups import PlacementGroupRecord, orphaned_groups
from yolofleet.training.supervision.watches import GrowthRequest, NodeRecord, NodeWatch, examine_and_kill

HEAD = NodeRecord("10.0.0.1", "4 CPU, 0 GPU", alive=True, end="")
WORKER = NodeRecord("10.0.0.2", "8 CPU, 1 GPU", alive=True, end="")
DEAD = NodeRecord("10.0.0.2", "8 CPU, 1 GPU", alive=False, end="health check failed")


def test_nodes_that_join_and_leave_are_events_and_those_of_the_beginning_are_not(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path))
    seen: dict[str, NodeRecord] = {"a": HEAD}
    watch = NodeWatch(run, lambda: seen)
    watch.update()
    seen["b"] = WORKER
    watch.update()
    watch.update()
    seen["b"] = DEAD
    watch.update()
    run.close()
    lines = [str(format_event(event)).partition(" ")[2] for event in run.events()]
    assert lines == [
        "node 10.0.0.2 joined the cluster: 8 CPU, 1 GPU",
        "node 10.0.0.2 has left the cluster: health check failed",
    ]


def test_a_head_that_does_not_answer_does_not_end_the_watch(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path))
    answers = iter([{"a": HEAD}, ConnectionError("away"), {"a": HEAD, "b": WORKER}])
    calls: list[object] = []

    def nodes() -> dict[str, NodeRecord]:
        answer = next(answers, {"a": HEAD, "b": WORKER})
        calls.append(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with NodeWatch(run, nodes, poll_seconds=0.01):
        deadline = time.monotonic() + 60
        while len(calls) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    run.close()
    assert [event["kind"] for event in run.events()] == ["node_joined"]


def test_a_stopped_process_is_examined_and_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.send_signal(signal.SIGSTOP)
    while "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text():
        time.sleep(0.01)
    evidence = examine_and_kill(process.pid)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert "State:\tT (stopped)" in evidence and evidence.endswith("killed")
    assert "py-spy" in evidence or "Thread" in evidence
    assert examine_and_kill(process.pid).endswith("is gone already")


def test_orphaned_groups_are_those_of_this_driver_whose_maker_is_dead() -> None:
    mine = PlacementGroupRecord("a", "job", "actor", maker_is_dead=True, state="CREATED")
    groups = [
        mine,
        PlacementGroupRecord("b", "job", "actor", maker_is_dead=False, state="CREATED"),
        PlacementGroupRecord("c", "other", "actor", maker_is_dead=True, state="CREATED"),
        PlacementGroupRecord("d", "job", "actor", maker_is_dead=True, state="REMOVED"),
        PlacementGroupRecord("e", "job", "actor", maker_is_dead=True, state="PENDING"),
        PlacementGroupRecord("f", "job", None, maker_is_dead=True, state="CREATED"),  # a trial of Ray Tune's
    ]
    assert [group.id for group in orphaned_groups(groups, "job")] == ["a", "e"]


class FakeRay:
    """Tasks that wait until ``room`` lets some of them run."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.cancelled: list[int] = []

    def remote(self, **options: Any) -> Any:
        def submitted() -> Any:
            def start() -> int:
                self.asked.append(options | options.pop("more", {}))
                self.waiting.append(len(self.asked))
                return len(self.asked)

            return SimpleNamespace(remote=start)

        def with_options(**more: Any) -> Any:
            options["more"] = more
            return submitted()

        return lambda function: SimpleNamespace(options=with_options)

    def wait(self, tasks: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        assert num_returns == len(tasks) and timeout == 0
        return [task for task in tasks if task not in self.waiting], [task for task in tasks if task in self.waiting]

    def cancel(self, task: int) -> None:
        self.cancelled.append(task)


def test_growth_is_asked_for_once_and_withdrawn_when_the_group_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    request = GrowthRequest(ClusterSpec(workers=(1, 8), gpus_per_worker=1, cpus_per_worker=12, labels={"pool": "a"}))
    request.ask(6)
    assert len(ray.waiting) == 6, "one for each worker that is missing"
    assert ray.asked[0] == {"max_retries": 0, "num_cpus": 12.0, "num_gpus": 1.0, "label_selector": {"pool": "a"}}
    request.ask(6)
    assert len(ray.asked) == 6, "those that wait still ask"
    del ray.waiting[:2]  # room for two has come
    request.ask(6)
    assert len(ray.asked) == 8 and len(ray.waiting) == 6
    request.ask(4)
    assert len(ray.asked) == 8
    request.withdraw()
    assert sorted(ray.cancelled) == ray.waiting
    request.withdraw()
    assert len(ray.cancelled) == 6
