from __future__ import annotations

import pytest

from yolofleet.specs.cluster import ClusterSpec
from yolofleet.training.supervision import ray_workers as ray_group
from yolofleet.training.supervision.heartbeats import Member
from yolofleet.training.supervision.nodes import NodeOffer
from yolofleet.training.supervision.placement_group_cleanup import HeldGroup, abandoned
from yolofleet.training.supervision.ray_workers import _free_places, _judged, _scaling, interface_of


@pytest.mark.parametrize(
    ("workers", "places", "asked"),
    [(2, 9, 2), ((1, 4), 9, 4), ((1, 4), 3, 3), ((2, 4), 2, 2), ((2, 4), 0, 2)],
)
def test_as_many_workers_are_asked_for_as_find_room(workers: object, places: int, asked: object) -> None:
    cluster = ClusterSpec(workers=workers, cpus_per_worker=2)  # type: ignore[arg-type]
    scaling = _scaling(cluster, places)
    assert scaling.num_workers == asked
    assert scaling.resources_per_worker == {"CPU": 2}
    assert not scaling.use_gpu


class Cluster:
    """A cluster of two nodes in a time of its own: when the group before gives its places back, and Ray tells of it.

    Args:
        returned_at: When the group before is gone.
        told_at: When Ray tells how much is free then, by node.
        free: Places that are free then.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, returned_at: float, told_at: float, free: int) -> None:
        self.now = 0.0
        patch.setattr(ray_group.time, "monotonic", lambda: self.now)
        patch.setattr(ray_group.time, "sleep", self.sleep)
        patch.setattr(ray_group, "return_abandoned", lambda: 0)
        patch.setattr(ray_group, "holds_room", lambda: self.now < returned_at)
        patch.setattr(ray_group, "free_offers", lambda: [NodeOffer({"CPU": free if self.now >= told_at else 0})])

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("returned_at", "told_at", "free", "places", "until"),
    [
        (0, 0, 2, 2, 0.0),  # all is free at once
        (2, 4, 2, 2, 4.0),  # Ray tells a little later
        (2, 0, 1, 1, 5.0),  # a node of the group is dead, and not known to be: it is not waited for
        (99, 99, 0, 0, 15.0),  # the group before does not end
    ],
)
def test_places_of_the_group_before_are_waited_for_but_not_those_of_others(
    monkeypatch: pytest.MonkeyPatch, returned_at: float, told_at: float, free: int, places: int, until: float
) -> None:
    cluster = Cluster(monkeypatch, returned_at=returned_at, told_at=told_at, free=free)
    assert _free_places(ClusterSpec(workers=(1, 2)), [NodeOffer({"CPU": 2})]) == places
    assert cluster.now == pytest.approx(until, abs=0.5)


def test_the_first_worker_may_have_labels_of_its_own() -> None:
    cluster = ClusterSpec(workers=(1, 3), labels={"pool": "a"}, first_worker_labels={"spot": "no"}, placement="SPREAD")
    scaling = _scaling(cluster, places=2)
    assert scaling.label_selector == [{"pool": "a", "spot": "no"}, {"pool": "a"}]
    assert scaling.placement_strategy == "SPREAD"


def test_failures_are_told_by_worker_and_kind() -> None:
    from ray.train import WorkerGroupError

    members = [Member(group="g", rank=1, num_workers=2, process=77, node="n", host="10.0.0.2")]
    died = type("WorkerHealthCheckFailedError", (Exception,), {})("its actor is gone")
    kind, told = _judged(WorkerGroupError("", {0: ValueError("a bug"), 1: died}), members)
    assert (kind, told) == ("worker", "rank 1 (process 77 on 10.0.0.2) died; rank 0 failed: ValueError: a bug")
    taken = type("ActorDiedError", (Exception,), {"preempted": True})("its node was taken")
    assert _judged(WorkerGroupError("", {0: taken, 1: ValueError()}), members)[0] == "preemption"
    assert _judged(RuntimeError("the controller died"), members) == ("start", "RuntimeError: the controller died")


def test_of_a_traceback_only_its_cause_is_told() -> None:
    text = """Training failed due to controller error:
\x1b[36mray::execute._setup_torch_process_group()\x1b[39m (pid=1, ip=10.0.0.1)
  File "/somewhere/site-packages/torch/distributed.py", line 7, in init
    raise
RuntimeError: connectFullMesh failed: 127.0.0.1 refused"""
    assert _judged(OSError(text), []) == (
        "start",
        "OSError: RuntimeError: connectFullMesh failed: 127.0.0.1 refused",
    )


def test_only_groups_of_this_driver_that_nobody_can_return_are_abandoned() -> None:
    mine = HeldGroup("a", "job", "actor", maker_is_dead=True, state="CREATED")
    held = [
        mine,
        HeldGroup("b", "job", "actor", maker_is_dead=False, state="CREATED"),
        HeldGroup("c", "other", "actor", maker_is_dead=True, state="CREATED"),
        HeldGroup("d", "job", "actor", maker_is_dead=True, state="REMOVED"),
        HeldGroup("e", "job", "actor", maker_is_dead=True, state="PENDING"),
        HeldGroup("f", "job", None, maker_is_dead=True, state="CREATED"),  # a trial of Ray Tune's
    ]
    assert [group.id for group in abandoned(held, "job")] == ["a", "e"]


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.199") is None
