"""An admission waits, holds, grows and gives back as the queue answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from training.tickets import Cluster, ticket
from yolofleet.core.errors import UserError, WorkError
from yolofleet.specs.cluster import ClusterSpec, QuotaSpec
from yolofleet.training.supervision import admission as module
from yolofleet.training.supervision.admission import ADMITTED, SENT_VARIABLE, USER_VARIABLE, Admission, ticket_of
from yolofleet.training.supervision.turns import Ticket


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.settle()
    return made


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


def test_a_run_that_starts_again_has_its_slots_before_one_of_a_higher_priority(
    cluster: Cluster, naps: list[Any]
) -> None:
    driver = Driver(cluster, ticket("run", 1, most=3))
    assert wait(driver) and driver.admission.claim() == 3
    driver.admission.hold(3)
    cluster.used["run"] = 3
    assert cluster.slots("high", 1, priority=5) == 0
    naps += [cluster.used.clear, lambda: cluster.slots("high", 1, priority=5)]
    assert wait(driver) and driver.admission.holds == 3
    reason = "it needs 1 slot of 1 CPU, 0 free; held by its own workers, which are ending (3)"
    assert reason in driver.events[0]["reason"]
    assert driver.admission.claim() == 3 and cluster.slots("high", 1, priority=5) == 0


def test_a_run_that_waits_for_nodes_keeps_nothing_from_others(cluster: Cluster, naps: list[Any]) -> None:
    driver = Driver(cluster, ticket("run", 3, most=4))
    cluster.cpus = 2
    driver.admission._ask_now()  # its loop does, while the run waits for nodes
    assert cluster.slots("other", 2) == 2
    cluster.queue.leave("other")
    cluster.cpus = 3
    assert wait(driver) and driver.admission.holds == 3
    cluster.cpus = 2
    driver.admission._ask_now()
    assert cluster.slots("other", 2) == 2
    naps += [lambda: None]
    assert not wait(driver)
    driver.admission._ask_now()
    assert cluster.slots("other", 2) == 2


def test_a_queue_that_only_listens_is_no_reason_to_give_up(cluster: Cluster, naps: list[Any]) -> None:
    cluster.restart_queue()
    naps += [cluster.settle]
    assert wait(Driver(cluster, ticket("run", 2)), limit=-1.0)


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
    first = {"first_worker_labels": {"spot": "no"}}
    apart = cluster.model_copy(update={**first, "evaluation": "apart"})
    made = ticket_of(apart, "run", "s3://runs/run", most=5)
    assert (made.first_labels, made.fewest, made.beside) == ({"spot": "no"}, 2, 1)
    for workers, labels in ((2, {"spot": "no"}), (1, None)):  # a trial of one worker is no group of Ray Train's
        trials = ClusterSpec(workers=workers, **first)  # type: ignore[arg-type]
        assert ticket_of(trials, "search", "s3://runs/search", most=4, shares=True).first_labels == labels
