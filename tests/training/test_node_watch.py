from __future__ import annotations

import time
from pathlib import Path

from yolofleet.storage import open_storage
from yolofleet.tracking.goodput import told
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.supervision.nodes import NodeSeen
from yolofleet.training.supervision.watches import NodeWatch

HEAD = NodeSeen("10.0.0.1", "4 CPU, 0 GPU", alive=True, end="")
WORKER = NodeSeen("10.0.0.2", "8 CPU, 1 GPU", alive=True, end="")
DEAD = NodeSeen("10.0.0.2", "8 CPU, 1 GPU", alive=False, end="health check failed")


def test_nodes_that_come_and_go_are_noted_and_those_of_the_beginning_are_not(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path))
    seen: dict[str, NodeSeen] = {"a": HEAD}
    watch = NodeWatch(run, lambda: seen)
    watch.look()
    seen["b"] = WORKER
    watch.look()
    watch.look()
    seen["b"] = DEAD
    watch.look()
    run.close()
    lines = [str(told(event)).partition(" ")[2] for event in run.events()]
    assert lines == [
        "node 10.0.0.2 joined the cluster: 8 CPU, 1 GPU",
        "node 10.0.0.2 has left the cluster: health check failed",
    ]


def test_a_head_that_does_not_answer_does_not_end_the_watch(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path))
    answers = iter([{"a": HEAD}, ConnectionError("away"), {"a": HEAD, "b": WORKER}])
    looks: list[object] = []

    def nodes() -> dict[str, NodeSeen]:
        answer = next(answers, {"a": HEAD, "b": WORKER})
        looks.append(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with NodeWatch(run, nodes, poll_seconds=0.01):
        deadline = time.monotonic() + 60
        while len(looks) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    run.close()
    assert [event["kind"] for event in run.events()] == ["node_joined"]
