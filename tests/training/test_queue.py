"""The queue's memory is its drivers': it knows again what they send, and forgets those that died."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.tickets import Cluster, ticket
from yolofleet.training.supervision import queue as queue_module
from yolofleet.training.supervision.queue import LEASE_SECONDS, SETTLE_SECONDS, ClusterView, TicketQueue, read_quotas


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.settle()
    return made


def test_what_one_was_granted_is_not_granted_to_another_before_it_is_placed(cluster: Cluster) -> None:
    assert cluster.slots("first", 2) == 2
    assert cluster.slots("second", 2) == 0
    assert cluster.slots("first", 2, holds=2) == 2
    cluster.used["first"] = 2
    assert cluster.slots("third", 1, priority=1) == 1


def test_arrival_is_the_queues_clock_and_is_kept(cluster: Cluster) -> None:
    first = cluster.queue.ask(ticket("first", 2))
    assert first.arrival == cluster.now
    cluster.now += 5
    assert cluster.queue.ask(ticket("first", 2, arrival=1.0)).arrival == first.arrival
    assert cluster.queue.ask(ticket("later", 1, arrival=9e9)).arrival == cluster.now, "nobody comes from the future"


def test_a_queue_that_was_lost_listens_before_it_grants(cluster: Cluster) -> None:
    cluster.used["holder"] = 2
    cluster.slots("holder", 2, holds=2)
    waited = cluster.queue.ask(ticket("waited", 2))
    cluster.now += 60
    cluster.restart_queue()
    cluster.now += 60  # until the first driver reaches the new one
    del cluster.used["holder"]
    assert cluster.slots("new", 2) == 0
    assert cluster.slots("waited", 2, arrival=waited.arrival) == 0
    cluster.settle()
    assert cluster.slots("new", 2) == 0
    assert cluster.slots("waited", 2, arrival=waited.arrival) == 2


def test_the_ticket_of_a_driver_that_died_is_forgotten(cluster: Cluster) -> None:
    cluster.used["holder"] = 2
    cluster.slots("holder", 2, holds=2)
    assert cluster.slots("dead", 2) == 0
    assert cluster.slots("next", 1) == 0, "it is behind the dead one, which is not known to be dead"
    cluster.now += LEASE_SECONDS + 1
    assert cluster.slots("next", 1) == 1


def test_a_clock_that_is_set_forgets_nobody_and_keeps_no_dead_one(monkeypatch: Any) -> None:
    wall, running = [1e9], [0.0]
    clock = SimpleNamespace(time=lambda: wall[0], monotonic=lambda: running[0])
    monkeypatch.setattr(queue_module, "time", clock)
    cluster = Cluster()
    cluster.queue = TicketQueue(cluster.view, cluster.quotas)
    cluster.slots("dead", 3)
    running[0] += SETTLE_SECONDS
    wall[0] += 3600
    assert cluster.slots("next", 1) == 0, "the other is still before it"
    wall[0] -= 7200
    running[0] += LEASE_SECONDS + 1
    assert cluster.slots("next", 1) == 1


def test_drivers_that_could_not_be_heard_while_the_queue_looked_at_the_cluster_are_not_forgotten(
    cluster: Cluster, monkeypatch: Any
) -> None:
    assert cluster.slots("first", 3) == 3
    view = cluster.view

    def slow() -> ClusterView:
        cluster.now += LEASE_SECONDS + 1
        return view()

    monkeypatch.setattr(cluster.queue, "_view", slow)
    assert [cluster.slots(name, 1) for name in ("second", "third")] == [0, 0]


def test_a_restarted_run_is_ahead_of_those_that_came_later(cluster: Cluster) -> None:
    cluster.slots("run", 2)
    cluster.slots("run", 2, holds=2)
    cluster.used["run"] = 2
    cluster.now += 10
    assert cluster.slots("other", 2) == 0
    del cluster.used["run"]  # its group died: the room is free for Ray, but not for others
    assert cluster.slots("other", 2) == 0
    assert cluster.slots("run", 2) == 2


def test_quotas_that_cannot_be_read_are_the_waiting_drivers_problem(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("YOLOFLEET_QUOTAS", str(tmp_path / "none.yaml"))
    cluster = Cluster(quotas=read_quotas)
    cluster.settle()
    answer = cluster.queue.ask(ticket("run", 1, holds=1))
    assert "none.yaml" in str(answer.problem) and answer.turn.slots == 1, "who runs already runs on"
    (tmp_path / "none.yaml").write_text("users: {ada: {cpus: 1}}\n")
    assert cluster.slots("run", 1, holds=1) == 1
    assert cluster.slots("more", 1) == 0, "the file is read again at each poll"


def test_an_autoscaler_is_asked_for_what_all_hold_and_wait_for(cluster: Cluster) -> None:
    cluster.slots("holder", 2, holds=2)
    demand = cluster.queue.ask(ticket("large", 3)).demand
    assert demand == [{"CPU": 1.0}] * 5


def test_a_ticket_of_an_earlier_version_is_read(cluster: Cluster) -> None:
    old = ticket("run", 2)
    for name in ("first_labels", "beside", "kept"):
        del old.__dict__[name]
    assert cluster.queue.ask(pickle.loads(pickle.dumps(old))).turn.slots == 2
