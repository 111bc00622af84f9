from __future__ import annotations

import numpy as np
import pytest

from yolofleet.data.plan import EpochPlan, StoreLimits, plan_epochs

NUM_SHARDS, SAMPLES, BYTES = 96, 40, 1000
DATASET = NUM_SHARDS * BYTES


def plan(num_nodes: int = 2, *, then: int | None = None, num_lanes: int = 8, **changes: object) -> EpochPlan:
    nodes = [num_nodes] if then is None else [num_nodes, then]
    arguments: dict[str, object] = {
        "node_of_lane": [[lane * count // num_lanes for lane in range(num_lanes)] for count in nodes],
        "micro_batch_size": 8,
        "cache_bytes": 10**9,
        "bytes_per_second": 500.0,
        "steps_per_second": 0.01,
        "deal": "fixed",
    }
    sizes = np.full(NUM_SHARDS, SAMPLES), np.full(NUM_SHARDS, BYTES)
    return plan_epochs(*sizes, **(arguments | changes))  # type: ignore[arg-type]


def downloaded(found: EpochPlan, epoch: int) -> int:
    return sum(node.downloaded_bytes[epoch] for node in found.nodes)


@pytest.mark.parametrize("num_nodes", [1, 2, 4, 8])
@pytest.mark.parametrize("num_lanes", [8, 10])
def test_the_nodes_download_the_dataset_once_and_a_fixed_deal_nothing_again(num_nodes: int, num_lanes: int) -> None:
    found = plan(num_nodes, num_lanes=num_lanes)
    assert DATASET <= downloaded(found, 0) <= DATASET + (num_nodes - 1) * BYTES, "a border cuts one shard"
    assert downloaded(found, 1) == 0 and all(node.hit_share[1] == 1.0 for node in found.nodes)
    shares = [node.downloaded_bytes[0] for node in found.nodes]
    assert max(shares) <= DATASET / num_lanes * -(-num_lanes // num_nodes) + 2 * BYTES


def test_a_deal_of_every_epoch_downloads_the_dataset_to_every_node_in_time() -> None:
    found = plan(2, deal="epoch", num_epochs=6)
    assert downloaded(found, 0) <= DATASET + 8 * BYTES and downloaded(found, 1) > 0.3 * DATASET
    assert all(sum(node.downloaded_bytes) <= DATASET for node in found.nodes)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (2, 3), (4, 4)])
def test_a_change_of_nodes_fetches_only_the_lanes_that_moved(before: int, after: int) -> None:
    found = plan(before, then=after)
    moved = sum(lane * before // 8 != lane * after // 8 for lane in range(8))
    assert abs(downloaded(found, 1) - moved / 8 * DATASET) <= 4 * BYTES


def test_a_cache_smaller_than_a_nodes_part_downloads_the_part_again_but_no_more() -> None:
    found = plan(2, cache_bytes=40 * BYTES, num_epochs=3)
    for node in found.nodes:
        assert node.peak_disk_bytes <= 40 * BYTES
        assert all(amount <= DATASET / 2 for amount in node.downloaded_bytes) and node.downloaded_bytes[2] > 0


@pytest.mark.parametrize("cache_shards", [1, 8, 24])
def test_what_is_fetched_ahead_never_makes_a_shard_come_twice(cache_shards: int) -> None:
    found = plan(2, cache_bytes=cache_shards * BYTES, num_epochs=1)
    assert found.working_bytes > cache_shards * BYTES
    assert DATASET <= downloaded(found, 0) <= DATASET + 7 * BYTES, "a shard that a border cuts is read by two lanes"
    assert all(node.peak_disk_bytes <= cache_shards * BYTES for node in found.nodes)


def test_a_fast_link_never_lets_training_wait_after_the_start_and_a_slow_one_always() -> None:
    fast, slow = plan(bytes_per_second=1e9), plan(bytes_per_second=1.0)
    assert fast.stall_seconds == pytest.approx((0, 0), abs=0.1)
    assert slow.stall_seconds[0] > 0.8 * (DATASET / 2) - NUM_SHARDS * SAMPLES / 64 * 100 and slow.stall_seconds[1] == 0


@pytest.mark.parametrize("store", [StoreLimits(bytes_per_second=8.0), StoreLimits(requests_per_second=2 * 8 / BYTES)])
def test_all_nodes_share_the_object_store(store: StoreLimits) -> None:
    """Eight bytes a second: the dataset takes 12,000 seconds, however many nodes download it."""
    waits = [plan(nodes, store=store, steps_per_second=1.0, num_epochs=1).stall_seconds[0] for nodes in (1, 2, 8)]
    assert all(0.9 * DATASET / 8 - 60 < wait <= DATASET / 8 for wait in waits)


def test_the_start_takes_the_one_shard_that_a_run_begins_with() -> None:
    found = plan()
    assert [node.first_batch_bytes for node in found.nodes] == [BYTES, BYTES]
    assert found.start_seconds == pytest.approx(BYTES / 500.0)


def test_shuffle_quality_is_a_share_of_a_full_shuffle() -> None:
    assert 0.6 < plan(num_lanes=4).shuffle_quality < plan(num_lanes=16).shuffle_quality < 1.02
    assert 0.5 < plan().partner_quality < 0.9
    few = plan_epochs(
        np.full(8, 200),
        np.full(8, BYTES),
        node_of_lane=[[0, 0, 0, 0]],
        micro_batch_size=8,
        cache_bytes=10**9,
        bytes_per_second=1.0,
        steps_per_second=1.0,
        num_epochs=1,
    )
    assert (few.shuffle_quality, few.partner_quality) == pytest.approx((1.0, 1.0), abs=0.05)
