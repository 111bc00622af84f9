from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.specs.hyperparameters import recipe
from yolofleet.training.loop.schedule import EarlierPlan, MultiScale, Schedule, averaging_decay, scaled_weight_decay

# Origin: the published implementation, commit a207844, run on a CPU (schedule.json of the golden numbers).
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "schedule.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cosine"], ids=lambda case: f"{case['hyp']}-{case['epochs']}")
def test_cosine_equals_the_published_one(case: dict) -> None:
    name = "tiny" if case["lrf"] == 0.01 else "p6" if case["lrf"] == 0.2 else "p5"
    schedule = Schedule(recipe(name), num_steps=case["epochs"] * 100, steps_per_epoch=100)
    for epoch, factor in case["factor_at_epoch"].items():
        assert schedule.factor(int(epoch)) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("case", GOLDEN["warmup_p5"], ids=lambda case: f"{case['total_batch']}-{case['ni']}")
def test_warmup_equals_the_published_one(case: dict) -> None:
    steps = case["batches_per_epoch"]
    settings = Schedule(recipe("p5"), num_steps=300 * steps, steps_per_epoch=steps).at(case["ni"])
    assert settings.learning_rate == pytest.approx(case["lr_weights"], rel=1e-9, abs=1e-12)
    assert settings.bias_learning_rate == pytest.approx(case["lr_bias"], rel=1e-9)
    assert settings.momentum == pytest.approx(case["momentum"], rel=1e-9)


def test_averaging_decay_equals_the_published_one() -> None:
    for updates, decay in GOLDEN["ema_decay"].items():
        assert averaging_decay(recipe("p5"), int(updates)) == pytest.approx(decay, rel=1e-12)


def test_weight_decay_is_the_published_one_at_the_nominal_batch() -> None:
    assert scaled_weight_decay(recipe("p5"), 64) == 0.0005
    assert scaled_weight_decay(recipe("p5"), 128) == 0.001


@given(st.integers(1, 5000), st.floats(0.3, 500.0), st.sampled_from(["p5", "p6", "tiny"]))
def test_any_run_warms_up_within_its_first_half_and_ends_low(num_steps: int, steps_per_epoch: float, name) -> None:
    schedule = Schedule(recipe(name), num_steps, steps_per_epoch)
    assert schedule.warmup_steps <= num_steps / 2
    rates = [schedule.at(step).learning_rate for step in range(0, num_steps, max(1, num_steps // 50))]
    assert all(0 <= rate <= schedule.hyperparameters.lr0 for rate in rates)
    assert 0.8 <= schedule.at(num_steps - 1).momentum <= 0.937


def test_a_line_falls_evenly_from_one_to_lrf_and_stays_there() -> None:
    line = recipe("p5").model_copy(update={"schedule": "linear", "lrf": 0.2})
    schedule = Schedule(line, num_steps=1000, steps_per_epoch=100.0)
    assert [schedule.factor(epoch) for epoch in (0, 5, 10, 11)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_warm_up_lasts_as_long_as_the_recipe_says_but_no_longer_than_half_the_run() -> None:
    warm = recipe("p5").model_copy(update={"warmup_epochs": 3.0, "warmup_min_steps": 1000, "warmup_bias_lr": 0.1})
    assert Schedule(warm, 100_000, 500.0).recipe_warmup_steps == 1500
    assert Schedule(warm, 100_000, 100.0).recipe_warmup_steps == 1000
    assert Schedule(warm, 1001, 100.0).warmup_steps == 500
    whole = warm.model_copy(update={"warmup_most_share": 1000.0})
    unlimited = Schedule(whole, 260, 13.0)  # as published: the run ends within its warm-up
    assert unlimited.warmup_steps == 1000
    assert unlimited.at(130).learning_rate == pytest.approx(0.13 * warm.lr0 * unlimited.factor(10))
    assert unlimited.at(130).bias_learning_rate == pytest.approx(0.1 + 0.13 * (warm.lr0 * unlimited.factor(10) - 0.1))
    cold = warm.model_copy(update={"warmup_epochs": 0.0})
    schedule = Schedule(cold, 100_000, 500.0)
    first = schedule.at(0)
    assert schedule.warmup_steps == 0
    assert (first.learning_rate, first.bias_learning_rate, first.momentum) == (cold.lr0, cold.lr0, cold.momentum)


def test_at_the_end_of_warm_up_all_is_as_scheduled_and_before_it_is_not() -> None:
    warm = recipe("p5")
    schedule = Schedule(warm, 100_000, 500.0)
    last = schedule.at(schedule.warmup_steps)
    peak = warm.lr0 * schedule.factor(schedule.warmup_steps // 500)
    assert (last.learning_rate, last.bias_learning_rate, last.momentum) == pytest.approx((peak, peak, warm.momentum))
    before = schedule.at(schedule.warmup_steps - 1)
    assert before.learning_rate < last.learning_rate and before.bias_learning_rate > last.bias_learning_rate
    assert before.momentum < last.momentum
    start = schedule.at(0)
    assert (start.learning_rate, start.bias_learning_rate) == (0.0, warm.warmup_bias_lr)
    assert start.momentum == warm.warmup_momentum


def test_mosaics_end_with_the_last_part_of_the_run() -> None:
    schedule = Schedule(recipe("p5").model_copy(update={"close_mosaic_share": 0.25}), 1000, 100.0)
    assert [schedule.closes_mosaic(step) for step in (0, 749, 750, 999)] == [False, False, True, True]
    never = Schedule(recipe("p5").model_copy(update={"close_mosaic_share": 0.0}), 1000, 100.0)
    assert not never.closes_mosaic(999)


@given(
    st.integers(1, 300),
    st.sampled_from([0.0, 0.07, 0.25, 1.0]),
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), max_size=3),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_the_first_step_on_single_images_is_that_of_the_walk(
    num_steps: int, share: float, earlier: list[tuple[int, int]], start: int, end: int
) -> None:
    plans = tuple(EarlierPlan(1.0, planned, until) for planned, until in earlier)
    closing = recipe("p5").model_copy(update={"close_mosaic_share": share})
    schedule = Schedule(closing, num_steps, 10.0, plans)
    walked = next((step for step in range(start, end) if schedule.closes_mosaic(step)), None)
    assert schedule.first_single_images(start, end) == walked


@given(st.integers(0, 2**63 - 1), st.integers(1, 40), st.sampled_from([8, 32, 64]), st.floats(0.01, 0.9))
def test_sizes_are_multiples_of_the_stride_within_the_range(seed: int, cells: int, stride: int, share: float) -> None:
    sizes = MultiScale(seed, cells * stride, stride, share)
    for step in range(20):
        side = sizes.at(step)
        assert side % stride == 0
        assert side == sizes.at(step)
        assert max(stride, (1 - share) * cells * stride - stride) <= side <= (1 + share) * cells * stride + stride


def test_the_published_range_is_met_end_to_end() -> None:
    seen = {MultiScale(0, 640, 32, 0.5).at(step) for step in range(3000)}
    assert seen == set(range(320, 961, 32))


def test_off_means_the_job_s_size() -> None:
    assert {MultiScale(3, 640, 32, 0.0).at(step) for step in range(50)} == {640}
