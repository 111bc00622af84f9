"""The queue's memory is its drivers'; an admission waits, holds, grows and gives back as the queue answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from yolofleet.core.errors import UserError, WorkError
from yolofleet.specs.cluster import ClusterSpec, QuotaSpec
from yolofleet.training.supervision import admission as module
from yolofleet.training.supervision.admission import ADMITTED, SENT_VARIABLE, USER_VARIABLE, Admission, ticket_of
from yolofleet.training.supervision.queue import LEASE_SECONDS, SETTLE_SECONDS, ClusterView, TicketQueue, read_quotas
from yolofleet.training.supervision.turns import Node, Ticket


class Cluster:
    """One node of three CPUs, whose workers are placed at once, and a clock that only the tests move."""

    def __init__(self, cpus: int = 3, quotas: Callable[[], QuotaSpec] = QuotaSpec) -> None:
        self.now = 1000.0
        self.cpus = cpus
        self.used: dict[str, int] = {}
        self.quotas = quotas
        self.restart_queue()

    def restart_queue(self) -> None:
        self.queue = TicketQueue(self.view, self.quotas, lambda: self.now)

    def settle(self) -> None:
        """Let the time go by in which a queue only listens; it begins with the first ticket, which is taken back."""
        self.queue.ask(ticket("settling", 1))
        self.queue.leave("settling")
        self.now += SETTLE_SECONDS

    def view(self) -> ClusterView:
        free = {"CPU": float(self.cpus - sum(self.used.values()))}
        bundles = {job: [{"CPU": 1.0}] * count for job, count in self.used.items()}
        return ClusterView([Node("here", {"CPU": float(self.cpus)}, free)], bundles)

    def slots(self, name: str, workers: int, **fields: Any) -> int:
        """What the queue answers to a ticket."""
        return self.queue.ask(ticket(name, workers, **fields)).turn.slots


def ticket(name: str, workers: int, **fields: Any) -> Ticket:
    waits = "holds" not in fields
    given = {"user": "ada", "fewest": workers, "most": workers, "waits": waits, "ray_job": name, **fields}
    return Ticket(name, name, **given)


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


class Driver:
    """An admission whose queue answers from this process."""

    def __init__(self, cluster: Cluster, sent: Ticket) -> None:
        self.cluster = cluster
        self.events: list[dict[str, Any]] = []
        self.failures: Iterator[Exception] = iter(())
        self.admission = Admission(sent, self.ask, cluster.queue.leave, self.record)
        self.naps = 0

    def ask(self, sent: Ticket) -> Any:
        for failure in self.failures:
            raise failure
        return self.cluster.queue.ask(sent)

    def record(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})


@pytest.fixture
def naps(monkeypatch: Any) -> list[Callable[[], object]]:
    """What happens in each pause of a driver that waits, in order."""
    todo: list[Callable[[], object]] = []

    def nap(seconds: float) -> None:
        assert todo, "it waits longer than the test foresees"
        todo.pop(0)()

    monkeypatch.setattr(module.time, "sleep", nap)
    monkeypatch.setattr(module, "growth_offers", list)
    return todo


def wait(driver: Driver, limit: float | None = None) -> bool:
    return driver.admission.wait(limit, lambda: None, lambda bundles: None)


def test_a_driver_waits_and_says_for_whom_once(cluster: Cluster, naps: list[Any], capsys: Any) -> None:
    cluster.used["holder"] = 2
    cluster.slots("holder", 2, holds=2)
    driver = Driver(cluster, ticket("run", 2))
    naps += [lambda: None, lambda: cluster.slots("holder", 2, holds=2), cluster.used.clear]
    naps += [lambda: cluster.queue.leave("holder")]
    assert wait(driver) is True
    kinds = [event["kind"] for event in driver.events]
    assert kinds == ["waiting", "waiting", "admitted"], "again only when what is free has changed"
    reason = "waiting for room: it needs 2 slots of 1 CPU, 1 free; held by holder of ada (2)"
    assert driver.events[0]["reason"] == reason
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == reason and printed[-1].startswith(ADMITTED)
    assert driver.admission.holds == 2


def test_a_driver_that_need_not_wait_says_nothing(cluster: Cluster, naps: list[Any], capsys: Any) -> None:
    driver = Driver(cluster, ticket("run", 2))
    assert wait(driver) and driver.events == [] and capsys.readouterr().err == ""


def test_waiting_ends_by_a_limit_a_stop_or_a_quota(cluster: Cluster, naps: list[Any]) -> None:
    cluster.slots("holder", 2, holds=2)
    naps += [lambda: None] * 9
    with pytest.raises(WorkError, match=r"no room within cluster\.wait_for_room_seconds = 0: it needs 2 slots"):
        wait(Driver(cluster, ticket("run", 2)), limit=0.0)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Driver(cluster, ticket("run", 2)).admission.wait(None, stop, lambda bundles: None)
    cluster.quotas = lambda: QuotaSpec.parse({"users": {"ada": {"cpus": 1}}}, source="quotas")
    cluster.restart_queue()
    cluster.settle()
    with pytest.raises(UserError, match=r"user ada has 0 of 1 CPU that its quota allows, so it would wait forever"):
        wait(Driver(cluster, ticket("run", 2)))


def test_nodes_that_went_end_the_wait_and_a_queue_that_is_away_does_not(cluster: Cluster, naps: list[Any]) -> None:
    cluster.cpus = 1
    naps += [lambda: None]
    assert wait(Driver(cluster, ticket("run", 2))) is False
    cluster.cpus = 3
    driver = Driver(cluster, ticket("run", 2))
    driver.failures = iter([ray.exceptions.RayActorError(), ray.exceptions.GetTimeoutError()])
    naps += [lambda: None] * 2
    assert wait(driver) is True
    assert "the cluster's queue does not answer" in driver.events[0]["reason"]


def test_a_slip_in_the_quotas_is_a_reason_to_wait(cluster: Cluster, naps: list[Any]) -> None:
    def damaged() -> QuotaSpec:
        raise UserError("quotas.yaml: users.ada.gpu: unknown key")

    cluster.quotas = damaged
    cluster.restart_queue()
    cluster.settle()
    driver = Driver(cluster, ticket("run", 2))

    def mend() -> None:
        cluster.quotas = QuotaSpec
        cluster.restart_queue()
        cluster.settle()

    naps += [mend]
    assert wait(driver) is True
    assert "the quotas of this cluster cannot be read: quotas.yaml" in driver.events[0]["reason"]


def test_an_elastic_run_claims_what_is_free_and_gives_back_what_it_does_not_use(
    cluster: Cluster, naps: list[Any]
) -> None:
    driver = Driver(cluster, ticket("run", 1, most=3))
    assert wait(driver) and driver.admission.holds == 1
    assert driver.admission.claim() == 3
    assert cluster.slots("other", 1) == 0, "claimed is claimed"
    driver.admission.hold(2)
    cluster.used["run"] = 2
    assert driver.admission.peek() == 2, "the third is for the one that waits"
    assert cluster.slots("other", 1) == 1


def test_a_search_begins_trials_within_its_slots_and_gives_way_at_their_ends(
    cluster: Cluster, naps: list[Any], monkeypatch: Any
) -> None:
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    driver = Driver(cluster, ticket("search", 1, most=3, shares=True))
    search = driver.admission
    wait(driver)
    running = 0
    while search.begin_trial(running):
        running += 1
        cluster.used["search"] = running
    assert running == 3
    assert cluster.slots("run", 2) == 0
    for left in (2, 1):
        search.end_trial(left)
        cluster.used["search"] = left
        assert not search.begin_trial(left), "another waits, and it has more than its share of one"
    assert cluster.slots("run", 2) == 2
    cluster.used["run"] = 2
    cluster.slots("run", 2, holds=2)
    assert not search.begin_trial(1)
    cluster.used.pop("run")
    cluster.queue.leave("run")
    assert search.begin_trial(1), "nobody waits any more"
    search.end_trial(0)
    assert search.holds == 1, "it keeps the slot of one trial until it ends"


def test_a_ticket_says_who_sent_it_and_when(monkeypatch: Any) -> None:
    class Context:
        def get_job_id(self) -> str:
            return "01000000"

    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setenv(USER_VARIABLE, "eve")
    cluster = ClusterSpec(workers=(1, 4), gpus_per_worker=1, labels={"pool": "a"}, priority=3, project="birds")
    monkeypatch.setattr(module.time, "time", lambda: 5000.0)
    for sent, arrival in (("4990", 4990.0), ("1", 4400.0), (None, 0.0)):
        monkeypatch.delenv(SENT_VARIABLE, raising=False)
        if sent is not None:
            monkeypatch.setenv(SENT_VARIABLE, sent)
        made = ticket_of(cluster, "run", "s3://runs/run", most=5)
        assert (made.user, made.project, made.priority, made.arrival) == ("eve", "birds", 3, arrival)
    assert (made.fewest, made.most, made.wanted, made.labels) == (1, 5, {"CPU": 1.0, "GPU": 1.0}, {"pool": "a"})
