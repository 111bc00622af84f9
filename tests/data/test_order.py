from __future__ import annotations

import time
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.data.order import Deal, Purpose, SampleOrder, keyed_generator

SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=30).filter(lambda sizes: sum(sizes) > 0)
LANES = st.integers(1, 12)
DEALS = st.sampled_from(["fixed", "epoch"])


def epoch_of(order: SampleOrder, lane: int, epoch: int) -> list[tuple[int, int]]:
    length = order.lane_length(lane)
    return [order.locate(lane, epoch * length + position) for position in range(length)]


def everything(sizes: list[int]) -> Counter[tuple[int, int]]:
    return Counter((shard, row) for shard, size in enumerate(sizes) for row in range(size))


@settings(max_examples=80)
@given(SIZES, st.integers(0, 2**64), LANES, st.integers(1, 9), DEALS, st.booleans())
def test_the_lanes_epochs_together_hold_every_sample_once(
    sizes: list[int], seed: int, num_lanes: int, window: int, deal: Deal, weighted: bool
) -> None:
    count = sum(sizes)
    weights = np.random.default_rng(1).random(count) + 0.1 if weighted else None
    order = SampleOrder(np.array(sizes), seed, num_lanes=num_lanes, deal=deal, window_shards=window, weights=weights)
    lengths = [order.lane_length(lane) for lane in range(num_lanes)]
    passes = sum(lengths) // count
    assert sum(lengths) == passes * count and min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
    assert passes == 1 or num_lanes > count
    for epoch in (0, 1, 5):
        seen = Counter(sample for lane in range(num_lanes) for sample in epoch_of(order, lane, epoch))
        assert sum(seen.values()) == passes * count and set(seen) <= set(everything(sizes))
        assert weighted or set(seen.values()) == {passes}


@settings(max_examples=40)
@given(SIZES, st.integers(0, 1000), LANES, DEALS, st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_who_asked_for_what_before(
    sizes: list[int], seed: int, num_lanes: int, deal: Deal, chance: object
) -> None:
    def new() -> SampleOrder:
        return SampleOrder(np.array(sizes), seed, num_lanes=num_lanes, deal=deal, window_shards=2)

    places = [(lane, position) for lane in range(num_lanes) for position in range(3 * new().lane_length(lane))]
    lane_by_lane = new()
    expected = {place: lane_by_lane.locate(*place) for place in places}
    chance.shuffle(places)  # type: ignore[attr-defined]
    asked = new()
    assert all(asked.locate(*place) == expected[place] for place in places)


@settings(max_examples=60)
@given(SIZES, st.integers(0, 1000), LANES, st.integers(1, 9), DEALS)
def test_windows_follow_each_other_and_name_the_shards_that_are_read_in_them(
    sizes: list[int], seed: int, num_lanes: int, window_shards: int, deal: Deal
) -> None:
    order = SampleOrder(np.array(sizes), seed, num_lanes=num_lanes, deal=deal, window_shards=window_shards)
    for lane in range(num_lanes):
        position = 0
        while position < 3 * order.lane_length(lane):
            window = order.window(lane, position)
            read = [order.locate(lane, each)[0] for each in range(window.first, window.end)]
            assert window.first == position and set(read) <= set(window.shards)
            assert len(window.shards) < 2 * window_shards and (deal == "epoch" or set(read) == set(window.shards))
            assert window.epoch == position // order.lane_length(lane) == (window.end - 1) // order.lane_length(lane)
            assert order.window(lane, window.end - 1) == window
            position = window.end


@settings(max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=40), st.integers(0, 1000), LANES)
def test_a_fixed_deal_cuts_at_most_one_shard_at_each_border_and_never_moves(
    sizes: list[int], seed: int, num_lanes: int
) -> None:
    order = SampleOrder(np.array(sizes), seed, num_lanes=num_lanes, deal="fixed", window_shards=3)
    parts = [sorted(epoch_of(order, lane, 0)) for lane in range(num_lanes)]
    owners = sum(len({shard for shard, _ in part}) for part in parts)
    if num_lanes <= sum(sizes):
        assert owners <= len(sizes) + num_lanes - 1
    for epoch in (1, 4):
        assert [sorted(epoch_of(order, lane, epoch)) for lane in range(num_lanes)] == parts


def test_a_deal_of_every_epoch_moves_shards_to_other_lanes() -> None:
    order = SampleOrder(np.full(64, 10), 3, num_lanes=4, deal="epoch")
    parts = [{shard for shard, _ in epoch_of(order, 0, epoch)} for epoch in range(3)]
    assert all(len(part) == 16 for part in parts) and len(set.union(*parts)) > 24


@pytest.mark.parametrize("num_shards", [1, 3, 7])
def test_the_micro_batches_of_a_dataset_with_few_shards_mix_all_of_it(num_shards: int) -> None:
    """The partners of a sample are drawn from everything, as by a full shuffle, and anew every epoch."""
    order = SampleOrder(np.full(num_shards, 96 // num_shards), 3, num_lanes=8, deal="epoch")
    first, second = ([frozenset(epoch_of(order, lane, epoch)) for lane in range(8)] for epoch in (0, 1))
    assert not set(first) & set(second)
    lanes_of_shard = Counter(shard for part in first for shard in {shard for shard, _ in part})
    assert min(lanes_of_shard.values()) >= 6


def test_a_run_begins_with_one_shard_and_windows_grow() -> None:
    order = SampleOrder(np.full(64, 10), 7, num_lanes=1)
    sizes, position = [], 0
    while position < 640:
        window = order.window(0, position)
        sizes.append(len(window.shards))
        position = window.end
    assert sizes[:4] == [1, 1, 2, 4] and set(sizes[4:]) == {8}
    ahead = order.windows_after(0, order.window(0, 0))
    assert [len(window.shards) for window in ahead] == [1, 2, 4, 8]
    assert len(order.window(0, 640).shards) == 8, "only at the begin of the run"


@pytest.mark.parametrize("deal", ["fixed", "epoch"])
def test_epochs_and_seeds_and_lanes_differ(deal: Deal) -> None:
    first, second = (SampleOrder(np.full(40, 30), seed, num_lanes=2, deal=deal) for seed in (0, 1))
    orders = [tuple(epoch_of(order, lane, epoch)) for order in (first, second) for lane in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 8
    rows = [tuple(row for _, row in order) for order in orders]
    assert len(set(rows)) == 8


@pytest.mark.parametrize(
    ("deal", "weights", "checksum", "first"),
    [
        ("fixed", None, 656796700, [(18, 6), (18, 16), (18, 0)]),
        ("epoch", None, 1906042075, [(18, 6), (18, 16), (18, 0)]),
        ("epoch", np.arange(1, 466) / 233.0, 1393077967, [(18, 4), (18, 6), (18, 2)]),
    ],
    ids=["fixed", "every epoch", "weighted"],
)
def test_the_order_is_the_one_that_earlier_versions_drew(
    deal: Deal, weights: np.ndarray | None, checksum: int, first: list[tuple[int, int]]
) -> None:
    """A run that an earlier version began must go on with the samples that it has not seen."""
    order = SampleOrder(np.arange(1, 31), 2026, num_lanes=4, deal=deal, weights=weights)
    found = [order.locate(lane, position) for lane in range(4) for position in range(2 * 117)]
    assert found[:3] == first
    assert zlib.crc32(np.array(found, dtype="<i8").tobytes()) == checksum


@pytest.mark.parametrize("deal", ["fixed", "epoch"])
def test_a_thousand_million_samples_start_in_little_time_and_memory(deal: Deal) -> None:
    sizes = np.full(10**5, 10**4)
    tracemalloc.start()
    started = time.perf_counter()
    order = SampleOrder(sizes, 0, num_lanes=64, deal=deal)
    batch = [order.locate(17, 3 * 10**9 // 64 + 12345 + slot) for slot in range(256)]
    seconds = time.perf_counter() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(batch)) == 256 and peak_bytes < 100e6
    print(f"first batch of 10^9 samples: {seconds * 1e3:.0f} ms, {peak_bytes / 1e6:.0f} MB")


def test_neighbours_are_well_mixed_within_their_window() -> None:
    """Pairs that follow each other come from the same shard no more often than by chance."""
    order = SampleOrder(np.full(64, 100), 3, num_lanes=1, window_shards=8)
    shards = np.array([shard for shard, _ in epoch_of(order, 0, 1)])
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
    others = [keyed_generator(0, Purpose.AUGMENTATION, 5, *more).random() for more in ((1,), (0, 1), (1, 1))]
    assert len({one[0], *others}) == 4
