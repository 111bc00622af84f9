from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolofleet.core.errors import UserError, WorkError
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.storage import StorageError, open_storage
from yolofleet.training.supervision import ray_workers
from yolofleet.training.supervision.heartbeats import WorkerStatus
from yolofleet.training.supervision.network_interface import interface_of
from yolofleet.training.supervision.nodes import NodeOffer
from yolofleet.training.supervision.ray_workers import (
    FAILURE_KEY,
    _classify,
    _free_slots,
    _may_grow,
    _scaling,
    train_worker,
)


@pytest.mark.parametrize(
    ("workers", "slots", "asked"),
    [(2, 9, 2), ((1, 4), 9, 4), ((1, 4), 3, 3), ((2, 4), 2, 2), ((2, 4), 0, 2)],
)
def test_as_many_workers_are_asked_for_as_have_room(workers: object, slots: int, asked: object) -> None:
    cluster = ClusterSpec(workers=workers, cpus_per_worker=2)  # type: ignore[arg-type]
    scaling = _scaling(cluster, slots)
    assert scaling.num_workers == asked
    assert scaling.resources_per_worker == {"CPU": 2}
    assert not scaling.use_gpu


class Cluster:
    """A cluster of two nodes with its own clock: when the previous group gives its resources back, and Ray lists them.

    Args:
        returned_at: When the previous group is gone.
        listed_at: When Ray lists them as free.
        free: Worker slots that are free then.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, returned_at: float, listed_at: float, free: int) -> None:
        self.now = 0.0
        patch.setattr(ray_workers.time, "monotonic", lambda: self.now)
        patch.setattr(ray_workers.time, "sleep", self.sleep)
        patch.setattr(ray_workers, "remove_orphaned_groups", lambda: None)
        patch.setattr(ray_workers, "holds_placement_groups", lambda: self.now < returned_at)
        patch.setattr(ray_workers, "free_offers", lambda: [NodeOffer({"CPU": free if self.now >= listed_at else 0})])

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("returned_at", "listed_at", "free", "slots", "until"),
    [
        (0, 0, 2, 2, 0.0),  # all is free at once
        (2, 4, 2, 2, 4.0),  # Ray lists them a little later
        (2, 0, 1, 1, 5.0),  # a node of the group is dead, and not known to be: it is not waited for
        (99, 99, 0, 0, 15.0),  # the previous group does not end
    ],
)
def test_resources_of_the_previous_group_are_waited_for_but_not_those_of_others(
    monkeypatch: pytest.MonkeyPatch, returned_at: float, listed_at: float, free: int, slots: int, until: float
) -> None:
    cluster = Cluster(monkeypatch, returned_at=returned_at, listed_at=listed_at, free=free)
    assert _free_slots(ClusterSpec(workers=(1, 2)), [NodeOffer({"CPU": 2})]) == slots
    assert cluster.now == pytest.approx(until, abs=0.5)


def test_a_group_with_a_strict_placement_has_as_many_workers_as_can_be_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = [NodeOffer({"CPU": 8}), NodeOffer({"CPU": 4})]
    monkeypatch.setattr(ray_workers, "free_offers", lambda: offers)
    cluster = ClusterSpec(workers=(1, 9), placement="STRICT_SPREAD")
    assert _free_slots(cluster, offers) == 2
    assert _free_slots(cluster.model_copy(update={"placement": "STRICT_PACK"}), offers) == 8
    may_grow = [_may_grow(cluster, workers, None) for workers in (1, 2)]
    assert [ask is not None and ask() for ask in may_grow] == [True, False]


def test_the_first_worker_may_have_labels_of_its_own() -> None:
    cluster = ClusterSpec(workers=(1, 3), labels={"pool": "a"}, first_worker_labels={"spot": "no"}, placement="SPREAD")
    scaling = _scaling(cluster, slots=2)
    assert scaling.label_selector == [{"pool": "a", "spot": "no"}, {"pool": "a"}]
    assert scaling.placement_strategy == "SPREAD"


def test_failures_are_described_by_worker_and_kind() -> None:
    from ray.train import WorkerGroupError

    workers = [WorkerStatus(group="g", rank=1, num_workers=2, process=77, node="n", host="10.0.0.2")]
    died = type("WorkerHealthCheckFailedError", (Exception,), {})("its actor is gone")
    kind, reason = _classify(WorkerGroupError("", {0: ValueError("a bug"), 1: died}), workers)
    assert (kind, reason) == ("worker", "rank 1 (process 77 on 10.0.0.2) died; rank 0 failed: ValueError: a bug")
    taken = type("ActorDiedError", (Exception,), {"preempted": True})("its node was taken")
    assert _classify(WorkerGroupError("", {0: taken, 1: ValueError()}), workers)[0] == "preemption"
    assert _classify(RuntimeError("the controller died"), workers) == ("start", "RuntimeError: the controller died")


def test_of_a_traceback_only_the_last_line_is_kept() -> None:
    text = """Training failed due to controller error:
\x1b[36mray::execute._setup_torch_process_group()\x1b[39m (pid=1, ip=10.0.0.1)
  File "/somewhere/site-packages/torch/distributed.py", line 7, in init
    raise
RuntimeError: connectFullMesh failed: 127.0.0.1 refused"""
    assert _classify(OSError(text), []) == (
        "start",
        "OSError: RuntimeError: connectFullMesh failed: 127.0.0.1 refused",
    )


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.199") is None


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (UserError("epochs: 0"), True),
        (WorkError("too many samples cannot be read"), True),
        (StorageError("there is no such bucket"), True),
        (StorageError("gave no answer", transient=True), False),
    ],
)
def test_only_an_error_that_no_restart_cures_ends_the_run(
    error: Exception, is_final: bool, small_job: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray_workers, "own_status", lambda *_: None)
    monkeypatch.setattr(ray_workers, "report_heartbeats", lambda *_: nullcontext())
    monkeypatch.setattr(ray_workers, "run_worker", fail)
    job = small_job()
    settings = {"token": None, "known": None, "leave_after_step": None, "board": None, "group": "1"}
    with pytest.raises(type(error)):
        train_worker({"job": job.document(), "evaluate_apart": False, **settings})
    run = open_storage(job.storage).child(job.name)
    assert run.exists(FAILURE_KEY) == is_final
    assert not is_final or json.loads(run.get(FAILURE_KEY))["message"] == str(error)
