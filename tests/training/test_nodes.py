from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.core.errors import UserError
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.training.supervision import placement_groups
from yolofleet.training.supervision.group_room import group_room
from yolofleet.training.supervision.nodes import (
    NodeOffer,
    evaluates_separately,
    has_room,
    num_slots,
    offers_of_groups,
)
from yolofleet.training.supervision.placement_groups import SETTLE_SECONDS, returns_room


def node(cpus: float = 4, gpus: float = 0, **labels: str) -> NodeOffer:
    return NodeOffer({"CPU": cpus, "GPU": gpus}, labels=labels, name="10.0.0.1")


def test_resources_of_two_nodes_do_not_add_up_to_one_worker() -> None:
    assert num_slots(ClusterSpec(cpus_per_worker=3), [node(4), node(4)]) == 2
    assert num_slots(ClusterSpec(cpus_per_worker=5), [node(4), node(4)]) == 0
    assert num_slots(ClusterSpec(cpus_per_worker=0.1), [node(0.3)]) == 3


def test_what_can_never_be_met_is_refused_with_what_is_there_and_missing() -> None:
    with pytest.raises(UserError) as refusal:
        has_room(ClusterSpec(workers=3, cpus_per_worker=4), [node(4), node(4)])
    assert "at least 3 workers of 4 CPU each, but the cluster has room for 2" in str(refusal.value)
    assert "10.0.0.1: 4 CPU, 0 GPU; 10.0.0.1: 4 CPU, 0 GPU" in str(refusal.value)
    assert "cluster.cpus_per_worker" in str(refusal.value)


def test_a_gpu_where_there_is_none_is_said_to_be_that() -> None:
    with pytest.raises(UserError, match=r"There is no GPU at all: set cluster\.gpus_per_worker=0"):
        has_room(ClusterSpec(gpus_per_worker=1), [node(4)])


def test_the_fewest_workers_decide() -> None:
    assert has_room(ClusterSpec(workers=(1, 8)), [node(1)])


def test_what_an_autoscaler_could_add_is_waited_for_and_what_it_could_not_is_refused() -> None:
    pool = NodeOffer({"CPU": 8, "GPU": 1}, count=4, name="gpu-pool")
    assert not has_room(ClusterSpec(workers=4, gpus_per_worker=1), [node(4)], [pool])
    with pytest.raises(UserError, match=r"it has room for 4 \(4 x gpu-pool: 8 CPU, 1 GPU\)"):
        has_room(ClusterSpec(workers=5, gpus_per_worker=1), [node(4)], [pool])


def test_evaluation_runs_beside_the_training_where_a_slot_is_free() -> None:
    def apart(nodes: int, **settings: Any) -> bool:
        return evaluates_separately(ClusterSpec(**settings), [node(1)] * nodes)

    assert apart(3, workers=2) and not apart(2, workers=2)
    assert not apart(2, workers=(1, 2)), "a group that may grow takes the slot"
    assert not evaluates_separately(ClusterSpec(workers=1), [node(8)]), "on one node it would take from the workers"
    assert apart(2, workers=2, evaluation="apart") and not apart(9, workers=2, evaluation="inline")


def test_the_slot_of_a_separate_evaluation_is_asked_for() -> None:
    cluster = ClusterSpec(workers=2, evaluation="apart")
    assert has_room(cluster, [node(3)])
    with pytest.raises(UserError, match=r"each and the same resources once more for cluster\.evaluation = apart"):
        has_room(cluster, [node(2)])


def test_labels_narrow_the_choice() -> None:
    cluster = ClusterSpec(labels={"kind": "stable"})
    assert has_room(cluster, [node(kind="stable")])
    with pytest.raises(UserError, match=r"on nodes labelled \{'kind': 'stable'\}"):
        has_room(cluster, [node(kind="spot"), node()])


@pytest.mark.parametrize(
    ("fields", "nodes", "room"),
    [
        ({"workers": 4, "placement": "STRICT_SPREAD"}, [node(8), node(8)], 2),
        ({"workers": 6, "placement": "STRICT_PACK"}, [node(4), node(4)], 4),
        ({"workers": 2, "first_worker_labels": {"spot": "no"}}, [node(4, spot="yes")], 0),
        ({"workers": 5, "placement": "STRICT_PACK", "evaluation": "apart"}, [node(4), node(2)], 5),
    ],
)
def test_what_its_placement_never_allows_is_refused_and_waited_for_where_it_may_come(
    fields: dict[str, Any], nodes: list[NodeOffer], room: int
) -> None:
    cluster = ClusterSpec(**fields)
    with pytest.raises(UserError) as refusal:
        has_room(cluster, nodes)
    shown = f"cluster.placement = {cluster.placement}" if "placement" in fields else "on a node labelled {'spot': 'no'}"
    assert shown in str(refusal.value) and f"the cluster has room for {room} (its nodes" in str(refusal.value)
    assert ("for another cluster.placement" in str(refusal.value)) == ("placement" in fields)
    assert not has_room(cluster, nodes, [NodeOffer({"CPU": 9}, count=4, labels={"spot": "no"})])


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=3),
    st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
    st.booleans(),
    st.integers(0, 1),
)
def test_a_group_of_nodes_has_the_room_of_so_many_nodes(
    groups: list[tuple[int, int, bool]], placement: str, is_labelled: bool, beside: int
) -> None:
    offers = [NodeOffer({"CPU": cpus}, count, {"spot": str(is_spot)}) for cpus, count, is_spot in groups]
    apiece = [replace(offer, count=1) for offer in offers for _ in range(offer.count)]
    first = {"spot": "False"} if is_labelled else {}
    one, other = (group_room(part, {"CPU": 1}, {}, first, placement).slots(beside) for part in (offers, apiece))
    assert one == other


def test_room_that_is_no_room_for_the_group_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers' start is then not charged as a failure."""
    clock = itertools.count(0.0, SETTLE_SECONDS / 2)
    monkeypatch.setattr(placement_groups.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(placement_groups.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(placement_groups, "remove_orphaned_groups", lambda: None)
    monkeypatch.setattr(placement_groups, "free_offers", lambda: [node(8, spot="yes"), node(8, spot="yes")])
    assert returns_room(ClusterSpec(workers=3), 3)
    assert not returns_room(ClusterSpec(workers=3, first_worker_labels={"spot": "no"}), 3)
    assert not returns_room(ClusterSpec(workers=3, placement="STRICT_SPREAD"), 3)
    assert returns_room(ClusterSpec(workers=2, placement="STRICT_SPREAD", evaluation="apart"), 2)


def test_many_nodes_are_not_all_listed() -> None:
    with pytest.raises(UserError, match="and 92 more"):
        has_room(ClusterSpec(cpus_per_worker=64), [node()] * 100)


GROUPS = {
    "on-demand": {"resources": {"CPU": 96, "GPU": 8}, "max_workers": 1, "labels": {"capacity": "on-demand"}},
    "spot": {"resources": {"CPU": 96, "GPU": 8}, "labels": {"capacity": "spot"}},
}


def test_groups_that_an_autoscaler_may_start_are_read_from_the_environment_or_the_launchers_file(
    tmp_path: Path,
) -> None:
    missing, file = tmp_path / "missing.yaml", tmp_path / "launcher.yaml"
    assert offers_of_groups(None, missing) == []
    head = {"head": {"resources": {"CPU": 0}}}
    file.write_text(json.dumps({"max_workers": 7, "head_node_type": "head", "available_node_types": head | GROUPS}))
    stays, spot = offers_of_groups(None, file)
    assert (stays.count, spot.count, spot.labels) == (1, 7, {"capacity": "spot"})
    (told,) = offers_of_groups(json.dumps({"on-demand": GROUPS["on-demand"]}), file)
    assert told == stays, "the environment comes first"
    eight = ClusterSpec(workers=8, gpus_per_worker=1, first_worker_labels={"capacity": "on-demand"})
    assert not has_room(eight, [], [stays, spot]), "waited for"
    with pytest.raises(UserError, match="the first one on a node labelled"):
        has_room(eight, [], [spot])


@pytest.mark.parametrize(
    "text", ["[", "[]", "1", '{"spot": 1}', '{"spot": {}}', '{"spot": {"resources": {}, "max_workers": "x"}}']
)
def test_groups_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="YOLOFLEET_NODE_GROUPS: these are no groups of nodes"):
        offers_of_groups(text, tmp_path / "missing.yaml")
