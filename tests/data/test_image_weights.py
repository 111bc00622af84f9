from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.data.anchors import Survey, image_weights, survey_boxes
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.order import Deal, SampleOrder, draw_counts


def survey(classes: list[int], samples: list[int], num_samples: int) -> Survey:
    boxes = np.full((len(classes), 2), 0.1)
    return Survey(boxes, np.array(classes, dtype=np.int64), np.array(samples, dtype=np.int64), num_samples, num_samples)


def test_rare_classes_weigh_more() -> None:
    # Three boxes of class 0 in images 0 to 2, one of class 1 in image 3, image 4 is empty.
    weights = image_weights(survey([0, 0, 0, 1], [0, 1, 2, 3], 5), 2, 1.0)
    assert weights == pytest.approx(np.array([1 / 3, 1 / 3, 1 / 3, 1, 0]) * 5 / 2)
    half = image_weights(survey([0, 0, 0, 1], [0, 1, 2, 3], 5), 2, 0.5)
    assert half == pytest.approx(0.5 + 0.5 * weights)
    assert image_weights(survey([], [], 3), 2, 1.0).tolist() == [1, 1, 1]


@settings(max_examples=50)
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=50).filter(lambda values: sum(values) > 1e-3), st.integers(0, 9)
)
def test_an_epoch_stays_as_long_and_draws_by_weight(values: list[float], epoch: int) -> None:
    weights = np.array(values)
    found = draw_counts(weights, 5, epoch)
    expected = weights / weights.sum() * len(weights)
    assert found.sum() == len(weights)
    assert (np.abs(found - expected) <= 1 + 1e-6).all()
    assert np.array_equal(found, draw_counts(weights, 5, epoch))


class Start:
    """A generator that draws one number."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self) -> float:
        return self._value


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 7.0]), min_size=1, max_size=40).filter(any),
    st.sampled_from([0.0, float(np.nextafter(1.0, 0.0))]),
)
def test_rounding_neither_costs_nor_adds_a_draw(values: list[float], start: float) -> None:
    """The smallest and the largest random number that there is: sums of weights round up and down."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolofleet.data.order.keyed_generator", lambda *_: Start(start))
        found = draw_counts(np.array(values), 0, 0)
    assert found.sum() == len(values) and found.min() >= 0


def test_in_the_long_run_the_mean_is_the_weight() -> None:
    weights = np.array([0.3, 0.7, 1.0, 2.5, 0.5])
    mean = np.mean([draw_counts(weights, 1, epoch) for epoch in range(2000)], axis=0)
    assert mean == pytest.approx(weights, abs=0.05)


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(lambda sizes: sum(sizes) > 0),
    st.integers(1, 5),
    st.sampled_from(["fixed", "epoch"]),
)
def test_the_order_draws_each_sample_as_often_as_it_should(sizes: list[int], num_lanes: int, deal: Deal) -> None:
    shard_sizes = np.array(sizes)
    total = int(shard_sizes.sum())
    num_lanes = min(num_lanes, total)
    weights = np.random.default_rng(0).random(total) * 3
    starts = np.cumsum(shard_sizes) - shard_sizes
    order = SampleOrder(shard_sizes, 4, num_lanes=num_lanes, deal=deal, window_shards=2, weights=weights)
    for epoch in (0, 1, 7):
        places = [
            order.locate(lane, epoch * order.lane_length(lane) + position)
            for lane in range(num_lanes)
            for position in range(order.lane_length(lane))
        ]
        drawn = np.bincount([starts[shard] + row for shard, row in places], minlength=total)
        assert np.array_equal(drawn, draw_counts(weights, 4, epoch))


def test_a_fixed_deal_by_weight_keeps_the_shards_of_a_lane() -> None:
    """How often samples are drawn differs between epochs; a lane's border moves with it, by a shard at most."""
    weights = np.random.default_rng(0).random(400) * 3
    order = SampleOrder(np.full(40, 10), 4, num_lanes=4, deal="fixed", weights=weights)
    parts = [{order.locate(1, epoch * 100 + position)[0] for position in range(100)} for epoch in range(5)]
    assert all(len(part ^ parts[0]) <= 2 for part in parts)


@pytest.mark.parametrize("deal", ["fixed", "epoch"])
def test_equal_weights_are_the_plain_order(deal: Deal) -> None:
    sizes = np.array([5, 3, 8])
    plain, weighted = (
        SampleOrder(sizes, 2, num_lanes=2, deal=deal, weights=weights) for weights in (None, np.ones(16))
    )
    assert [plain.locate(1, position) for position in range(24)] == [
        weighted.locate(1, position) for position in range(24)
    ]


def test_a_survey_reads_every_box_once(dataset: ShardDataset) -> None:
    found = survey_boxes(dataset)
    assert len(found.classes) == dataset.manifest.num_boxes
    assert np.bincount(found.classes, minlength=len(dataset.classes)).tolist() == list(dataset.manifest.class_counts)
    assert found.num_surveyed == found.num_samples == len(dataset)
    assert (found.sizes > 0).all() and (found.sizes <= 1 + 1e-9).all()
    for number in (0, 7, len(dataset) - 1):
        _, record = dataset.read_record(number)
        assert (found.samples == number).sum() == (~record.iscrowd).sum()


def test_a_survey_of_a_part_is_spread_evenly(dataset: ShardDataset) -> None:
    found = survey_boxes(dataset, 9)
    assert found.num_surveyed == 9
    assert set(found.samples) <= {number * len(dataset) // 9 for number in range(9)}
