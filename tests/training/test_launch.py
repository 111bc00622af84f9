"""The driver on Ray: workers are started until the run is done, and no failure budget is endless."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from yolofleet.core.errors import WorkError
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.loop.worker_progress import KnownProgress, StoppedError
from yolofleet.training.supervision.launch import FailureBudget, supervise, wait_for_nodes
from yolofleet.training.supervision.nodes import NodeOffer
from yolofleet.training.supervision.ray_workers import ROOM_TAKEN, Ending, Failure
from yolofleet.training.supervision.watches import GROWTH, PREEMPTION

DONE = Ending(None, None, "", None)
JOB = JobSpec.parse(
    {
        "name": "run",
        "model": {"name": "yolov7-tiny"},
        "data": {"train": "a", "val": "b"},
        "cluster": {"max_failures": 2, "max_preemptions": 3, "max_start_failures": 1},
    },
    source="job",
)


def failed(kind: Any = "worker", step: int = 7) -> Ending:
    return Ending(kind, None, f"a {kind} failed", KnownProgress(step, 1000.0))


def left(reason: str) -> Ending:
    return Ending(None, reason, reason, KnownProgress(9, 1000.0))


class Driver:
    """Runs the supervision over a list of endings."""

    def __init__(self, folder: Path, endings: list[Ending], stop_after: int | None = None) -> None:
        self.run = RunDirectory(open_storage(folder), source="driver")
        self.store = CheckpointStore(self.run.storage.child("checkpoints"))
        self.endings = endings
        self.known: list[KnownProgress | None] = []
        self.known_steps: list[int | None] = []
        self.waits = 0
        self.checkpoint_at_each_start = False
        self._stop_after = stop_after

    def start(self, known: KnownProgress | None) -> Ending:
        self.known.append(known)
        self.known_steps.append(None if known is None else known.step)
        if self.checkpoint_at_each_start:
            self.store.save(len(self.known_steps), {"weights": {"w": torch.ones(1)}}, {})
            self.store.wait()
        return self.endings.pop(0)

    def wait(self) -> None:
        self.waits += 1

    def stop_reason(self) -> str | None:
        return "SIGTERM" if self._stop_after is not None and len(self.known_steps) >= self._stop_after else None

    def supervise(self) -> list[str]:
        try:
            supervise(JOB, self.run, self.start, self.wait, self.stop_reason)
        finally:
            self.run.flush()
        return [str(event["kind"]) for event in self.run.events()]


def test_a_run_that_ends_is_started_once(tmp_path: Path) -> None:
    driver = Driver(tmp_path, [DONE])
    assert driver.supervise() == []
    assert driver.known_steps == [None]


def test_a_start_after_a_failure_knows_how_far_the_run_was(tmp_path: Path) -> None:
    driver = Driver(tmp_path, [failed(step=7), Ending("start", None, "no group", None), DONE])
    assert driver.supervise() == ["failure", "failure"]
    assert driver.known_steps == [None, 7, 7]
    assert driver.waits == 2


@pytest.mark.parametrize(("kind", "limit"), [("worker", 2), ("preemption", 3), ("start", 1)])
def test_no_budget_is_endless(kind: str, limit: int, tmp_path: Path) -> None:
    driver = Driver(tmp_path, [failed(kind)] * 99)
    with pytest.raises(WorkError, match=rf"{limit + 1} failures \({kind}\) without a checkpoint since step 0"):
        driver.supervise()
    assert len(driver.known_steps) == limit + 1
    assert driver.run.events()[-1]["again"] is False


def test_a_start_that_fails_before_it_is_as_far_again_does_not_move_what_was_reached(tmp_path: Path) -> None:
    reached = [(10, 1000.0), (9, 2000.0), (0, 3000.0), (10, 4000.0), (12, 5000.0)]
    driver = Driver(tmp_path, [*(Ending("worker", None, "died", KnownProgress(*known)) for known in reached), DONE])
    driver.checkpoint_at_each_start = True
    driver.supervise()
    assert driver.known == [None, *(KnownProgress(10, 1000.0) for _ in range(4)), KnownProgress(12, 5000.0)]


def test_progress_renews_the_budgets(tmp_path: Path) -> None:
    driver = Driver(tmp_path, [failed()] * 20 + [DONE])
    driver.checkpoint_at_each_start = True
    assert driver.supervise() == ["failure"] * 20


def test_a_start_whose_room_was_gone_is_charged_to_nobody(tmp_path: Path) -> None:
    driver = Driver(tmp_path, [left(ROOM_TAKEN)] * 9 + [DONE])
    assert driver.supervise() == ["resize"] * 9
    assert driver.waits == 9, "it waits for its turn before each start"


def test_growth_is_no_failure_and_a_pre_emption_has_its_own_budget(tmp_path: Path) -> None:
    driver = Driver(tmp_path, [left(GROWTH)] * 9 + [left(PREEMPTION), failed(), failed(), DONE])
    assert driver.supervise() == ["resize"] * 9 + ["failure"] * 3
    assert [event["failure"] for event in driver.run.events() if event["kind"] == "failure"] == [
        "preemption",
        "worker",
        "worker",
    ]


def test_a_driver_that_is_asked_to_stop_starts_nothing_more(tmp_path: Path) -> None:
    driver = Driver(tmp_path, [left("SIGTERM"), DONE], stop_after=1)
    with pytest.raises(StoppedError, match=r"stopped \(SIGTERM\) at step 0; resume the run with the same command"):
        driver.supervise()
    finished = Driver(tmp_path, [DONE], stop_after=1)
    finished.supervise()  # it ended before it could be stopped


def waiting(
    tmp_path: Path,
    nodes: list[list[NodeOffer]],
    seconds: float = 5.0,
    stop: Callable[[], str | None] = lambda: None,
    **cluster: Any,
) -> tuple[list[tuple[list[dict[str, float]], list[dict[str, str]]]], RunDirectory]:
    job = JOB.model_copy(update={"cluster": ClusterSpec(workers=2, wait_for_nodes_seconds=seconds, **cluster)})
    run, asked = RunDirectory(open_storage(tmp_path), source="driver"), []
    offers = lambda: nodes.pop(0) if len(nodes) > 1 else nodes[0]  # noqa: E731
    wait_for_nodes(job, run, offers, lambda bundles, labels: asked.append((bundles, labels)), stop)
    return asked, run


def test_nodes_that_come_are_waited_for_and_asked_of_the_autoscaler(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("yolofleet.training.supervision.launch.NODE_POLL_SECONDS", 0.01)
    node = NodeOffer({"CPU": 1.0})
    asked, run = waiting(tmp_path, [[node], [node], [node], [node, node]])
    assert asked == [([{"CPU": 1.0}] * 2, [{}, {}]), ([], [])]
    assert "waiting up to 5 s for nodes: cluster.workers asks for at least 2 workers" in capsys.readouterr().err
    assert [event["kind"] for event in run.events()] == ["waiting"]


def test_the_first_worker_waits_for_a_node_of_its_own_kind(tmp_path: Path, monkeypatch) -> None:
    """Room on spot nodes alone is none: rank 0 would never start, and that would be charged as a failure."""
    monkeypatch.setattr("yolofleet.training.supervision.launch.NODE_POLL_SECONDS", 0.01)
    spot, stays = (NodeOffer({"CPU": 2.0}, labels={"capacity": name}) for name in ("spot", "on-demand"))
    first = {"capacity": "on-demand"}
    asked, _ = waiting(tmp_path, [[spot], [spot], [spot, spot], [spot, stays]], first_worker_labels=first)
    assert asked == [([{"CPU": 1.0}] * 2, [first, {}]), ([], [])]
    with pytest.raises(WorkError, match=r"the first one on a node labelled \{'capacity': 'on-demand'\}"):
        waiting(tmp_path, [[spot, spot]], seconds=0.2, first_worker_labels=first)


def test_nodes_that_are_there_are_not_waited_for(tmp_path: Path) -> None:
    assert waiting(tmp_path, [[NodeOffer({"CPU": 2.0})]])[0] == []


def test_nodes_that_do_not_come_end_the_run_in_time(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"No such nodes came within cluster\.wait_for_nodes_seconds = 0\.2"):
        waiting(tmp_path, [[]], seconds=0.2)
    with pytest.raises(StoppedError, match="while waiting for nodes"):
        waiting(tmp_path, [[]], stop=lambda: "SIGTERM")


CLUSTER = ClusterSpec(max_failures=2, max_preemptions=3, max_start_failures=1)


@pytest.mark.parametrize(("kind", "limit"), [("worker", 2), ("preemption", 3), ("start", 1)])
def test_each_kind_has_a_budget_of_its_own_and_none_is_endless(kind: Failure, limit: int) -> None:
    budget = FailureBudget.of(CLUSTER, checkpoint_step=10)
    assert [budget.charge(kind, 10) for _ in range(limit + 1)] == [True] * limit + [False]
    others = [other for other in budget.limits if other != kind]
    assert all(budget.charge(other, 10) for other in others)


def test_a_checkpoint_renews_every_budget() -> None:
    budget = FailureBudget.of(CLUSTER, checkpoint_step=0)
    for step in range(1, 50):
        assert budget.charge("worker", step)
        assert budget.charge("worker", step)
        assert budget.charge("start", step)
    assert not budget.charge("worker", 49)


def test_an_older_checkpoint_is_no_progress() -> None:
    budget = FailureBudget.of(CLUSTER, checkpoint_step=100)
    assert [budget.charge("worker", step) for step in (90, 80, 100)] == [True, True, False]
    assert budget.explain("worker") == (
        "3 failures (worker) without a checkpoint since step 100, more than cluster.max_failures = 2"
    )
