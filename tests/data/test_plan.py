from __future__ import annotations

import numpy as np
import pytest

from yolofleet.data.plan import EpochPlan, plan_epochs

NUM_SHARDS, SAMPLES, BYTES = 24, 40, 1000


def plan(**changes: object) -> EpochPlan:
    arguments: dict[str, object] = {
        "worker_of_micro_batch": [0, 1, 2, 3],
        "node_of_worker": [0, 0, 1, 1],
        "micro_batch_size": 8,
        "cache_bytes": 10**9,
        "bytes_per_second": 500.0,
    }
    sizes = np.full(NUM_SHARDS, SAMPLES), np.full(NUM_SHARDS, BYTES)
    return plan_epochs(*sizes, **(arguments | changes))  # type: ignore[arg-type]


def test_a_cache_for_everything_downloads_once() -> None:
    for node in plan().nodes:
        assert node.downloaded_bytes == (NUM_SHARDS * BYTES, 0)
        assert node.peak_disk_bytes == NUM_SHARDS * BYTES and node.hit_share[1] == 1.0


def test_a_cache_for_two_windows_downloads_each_shard_once_an_epoch() -> None:
    for node in plan(cache_bytes=16 * BYTES).nodes:
        assert node.peak_disk_bytes <= 16 * BYTES
        assert node.downloaded_bytes[0] == NUM_SHARDS * BYTES
        assert node.downloaded_bytes[1] <= NUM_SHARDS * BYTES and node.hit_share[1] > 0.9


def test_a_cache_smaller_than_a_window_thrashes_and_says_so() -> None:
    small, large = plan(cache_bytes=3 * BYTES), plan(cache_bytes=16 * BYTES)
    assert small.nodes[0].downloaded_bytes[0] > 2 * large.nodes[0].downloaded_bytes[0]
    assert small.nodes[0].hit_share[0] < 0.5 < large.nodes[0].hit_share[0]
    assert small.window_bytes == 16 * BYTES, "what the cache should hold at least"


def test_the_start_takes_the_shards_of_the_first_micro_batch() -> None:
    found = plan()
    slowest = max(node.first_batch_bytes for node in found.nodes)
    assert BYTES <= slowest <= 8 * BYTES and found.start_seconds == pytest.approx(slowest / 500.0)


@pytest.mark.parametrize("owners", [[0, 0, 0, 0], [0, 0, 1, 2], [0, 1, 2, 3]])
def test_every_node_gets_a_share(owners: list[int]) -> None:
    found = plan(node_of_worker=owners)
    assert len(found.nodes) == len(set(owners)) and all(node.downloaded_bytes[0] > 0 for node in found.nodes)


def test_shuffle_quality_is_a_share_of_a_full_shuffle() -> None:
    assert 0.4 < plan().shuffle_quality < 0.9
    one_window = plan_epochs(
        np.full(8, 200),
        np.full(8, BYTES),
        worker_of_micro_batch=[0, 0, 0, 0],
        node_of_worker=[0],
        micro_batch_size=8,
        cache_bytes=10**9,
        bytes_per_second=1.0,
        num_epochs=1,
    )
    assert one_window.shuffle_quality == pytest.approx(1.0, abs=0.03)
