from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.training.loop.worker_group import WorkerGroup, assign_micro_batches
from yolofleet.training.loop.worker_progress import WorkerProgress


@given(st.integers(1, 64), st.integers(1, 64))
def test_every_micro_batch_has_one_owner_and_shares_differ_by_at_most_one(num_micro_batches: int, world: int) -> None:
    world = min(world, num_micro_batches)
    owned = [assign_micro_batches(num_micro_batches, rank, world) for rank in range(world)]
    assert [index for part in owned for index in part] == list(range(num_micro_batches))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.parametrize(("num_micro_batches", "rank", "world"), [(2, 0, 3), (2, 2, 2), (2, -1, 2)])
def test_more_ranks_than_micro_batches_is_an_error(num_micro_batches: int, rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="cannot own"):
        assign_micro_batches(num_micro_batches, rank, world)


def test_the_first_reason_to_leave_counts() -> None:
    progress = WorkerProgress()
    progress.ask_to_leave("one")
    progress.ask_to_leave("two")
    assert progress.leave_reason == "one"


def test_the_texts_of_one_worker_are_its_own() -> None:
    assert WorkerGroup().concatenate_texts("ä\nb\n") == "ä\nb\n"
    assert WorkerGroup().concatenate_texts("") == ""
