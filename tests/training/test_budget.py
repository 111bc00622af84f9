from __future__ import annotations

import pytest

from yolofleet.specs.cluster import ClusterSpec
from yolofleet.training.supervision.failure_budget import FailureBudget, Kind

CLUSTER = ClusterSpec(max_failures=2, max_preemptions=3, max_start_failures=1)


@pytest.mark.parametrize(("kind", "limit"), [("worker", 2), ("preemption", 3), ("start", 1)])
def test_each_kind_has_a_budget_of_its_own_and_none_is_endless(kind: Kind, limit: int) -> None:
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
    assert budget.totals["worker"] == 99


def test_an_older_checkpoint_is_no_progress() -> None:
    budget = FailureBudget.of(CLUSTER, checkpoint_step=100)
    assert [budget.charge("worker", step) for step in (90, 80, 100)] == [True, True, False]
    assert budget.spent("worker") == (
        "3 failures (worker) without a checkpoint since step 100, more than cluster.max_failures = 2"
    )
