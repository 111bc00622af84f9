from __future__ import annotations

import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.data.order import Purpose, SampleOrder, keyed_generator

SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=30).filter(lambda sizes: sum(sizes) > 0)


def locate_all(order: SampleOrder, positions: range) -> list[tuple[int, int]]:
    return [(location.shard, location.row) for location in (order.locate(position) for position in positions)]


@settings(max_examples=60)
@given(SIZES, st.integers(0, 2**64), st.integers(1, 9), st.booleans())
def test_an_epoch_holds_every_sample_exactly_once(sizes: list[int], seed: int, window: int, shuffle: bool) -> None:
    order = SampleOrder(np.array(sizes), seed, window_shards=window, shuffle=shuffle)
    count = sum(sizes)
    everything = {(shard, row) for shard, size in enumerate(sizes) for row in range(size)}
    for epoch in (0, 1, 5):
        seen = locate_all(order, range(epoch * count, (epoch + 1) * count))
        assert len(seen) == count and set(seen) == everything


@settings(max_examples=40)
@given(SIZES, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_who_asked_for_what_before(sizes: list[int], seed: int, chance: object) -> None:
    count = sum(sizes)
    positions = list(range(3 * count))
    one_by_one = locate_all(SampleOrder(np.array(sizes), seed, window_shards=2), range(3 * count))
    chance.shuffle(positions)  # type: ignore[attr-defined]
    asked = SampleOrder(np.array(sizes), seed, window_shards=2)
    assert all(locate_all(asked, range(position, position + 1)) == [one_by_one[position]] for position in positions)


def test_a_window_reads_its_own_shards_only() -> None:
    sizes = np.full(20, 5)
    order = SampleOrder(sizes, 7, window_shards=4)
    for window in range(order.num_windows(0)):
        expected = set(order.window_shards(0, window))
        seen = {order.locate(position).shard for position in range(window * 20, (window + 1) * 20)}
        assert seen == expected and len(expected) == 4


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num_shards", [1, 4, 7, 8])
def test_windows_follow_each_other_and_hold_what_is_read_in_them(num_shards: int, weighted: bool) -> None:
    sizes = np.arange(1, num_shards + 1)
    weights = np.random.default_rng(1).random(sizes.sum()) + 0.2 if weighted else None
    order = SampleOrder(sizes, 7, window_shards=4, weights=weights)
    count = int(sizes.sum())
    at, read = (0, 0), 0
    for _ in range(3 * order.num_windows(0)):
        shards, rows = order.window_samples(*at)
        found = [order.locate(position) for position in range(read, read + len(shards))]
        assert [(each.epoch, each.window) for each in found] == [at] * len(shards)
        assert [(each.shard, each.row) for each in found] == list(zip(shards.tolist(), rows.tolist(), strict=True))
        assert set(shards.tolist()) == set(order.window_shards(*at)) and len(order.window_shards(*at)) <= 4
        read += len(shards)
        at = order.window_after(*at)
        if at[1] == 0:
            assert read == at[0] * count
    if not weighted:
        assert order.num_windows(0) == -(-num_shards // 4) and at == (3, 0)


def test_epochs_and_seeds_differ() -> None:
    sizes = np.full(10, 30)
    first, second = (locate_all(SampleOrder(sizes, seed), range(600)) for seed in (0, 1))
    assert first[:300] != first[300:] and first != second


def test_each_shuffle_is_a_permutation_of_its_own() -> None:
    """The shards of an epoch, the samples of a window: each changes with the epoch, and none is the order as stored."""
    order = SampleOrder(np.full(12, 20), 0, window_shards=3)
    shards = [[shard for window in range(4) for shard in order.window_shards(epoch, window)] for epoch in range(3)]
    assert all(sorted(entry) == list(range(12)) for entry in shards)
    assert len({tuple(entry) for entry in [*shards, list(range(12))]}) == 4
    rows = [tuple(np.argsort(order.window_samples(epoch, window)[1])) for epoch in (0, 1) for window in range(4)]
    assert len(set(rows)) == 8


@pytest.mark.parametrize(
    ("weights", "checksum", "first"),
    [
        (None, 808274452, [(0, 26, 24), (0, 20, 4), (0, 18, 8)]),
        (np.arange(1, 466) / 233.0, 413952010, [(0, 22, 8), (0, 26, 4), (0, 27, 1)]),
    ],
    ids=["once each", "weighted"],
)
def test_the_order_is_the_one_that_earlier_versions_drew(
    weights: np.ndarray | None, checksum: int, first: list[tuple[int, int, int]]
) -> None:
    """A run that an earlier version began must go on with the samples that it has not seen."""
    order = SampleOrder(np.arange(1, 31), 2026, weights=weights)
    found = [order.locate(position) for position in range(2 * 465)]
    assert [(location.window, location.shard, location.row) for location in found[:3]] == first
    rows = np.array([[each.epoch, each.window, each.shard, each.row] for each in found], dtype="<i8")
    assert zlib.crc32(rows.tobytes()) == checksum


def test_without_shuffle_the_order_is_that_of_the_shards() -> None:
    order = SampleOrder(np.array([2, 0, 3]), 0, shuffle=False)
    assert locate_all(order, range(6)) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (0, 0)]


def test_a_thousand_million_samples_start_in_little_time_and_memory() -> None:
    sizes = np.full(10**5, 10**4)
    tracemalloc.start()
    started = time.perf_counter()
    order = SampleOrder(sizes, 0)
    batch = locate_all(order, range(3 * 10**9 + 12345, 3 * 10**9 + 12345 + 256))
    seconds = time.perf_counter() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(batch)) == 256 and peak_bytes < 100e6
    print(f"first batch of 10^9 samples: {seconds * 1e3:.0f} ms, {peak_bytes / 1e6:.0f} MB")


def test_neighbours_are_well_mixed_within_their_window() -> None:
    """Pairs that follow each other come from the same shard no more often than by chance."""
    order = SampleOrder(np.full(64, 100), 3, window_shards=8)
    shards = np.array([shard for shard, _ in locate_all(order, range(6400))])
    same = float((shards[1:] == shards[:-1]).mean())
    assert same == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize(
    "other", [(1, Purpose.AUGMENTATION, 5), (0, Purpose.SAMPLE_ORDER, 5), (0, Purpose.AUGMENTATION, 6)]
)
def test_generators_of_different_names_are_independent(other: tuple[int, Purpose, int]) -> None:
    one = keyed_generator(0, Purpose.AUGMENTATION, 5).random(1000)
    again = keyed_generator(0, Purpose.AUGMENTATION, 5).random(1000)
    different = keyed_generator(*other).random(1000)
    assert (one == again).all() and abs(np.corrcoef(one, different)[0, 1]) < 0.15
    assert keyed_generator(0, Purpose.AUGMENTATION, 5, 1).random() != one[0]
