"""The model behind suggestions, against what is known of Gaussian processes."""

from __future__ import annotations

import numpy as np
import pytest

from yolofleet.search.gaussian_process import _evidence, fit
from yolofleet.search.model_based import expected_hypervolume_gain, expected_improvement
from yolofleet.search.pareto import hypervolume


def test_the_gradient_is_that_of_the_evidence() -> None:
    random = np.random.default_rng(0)
    inputs, targets = random.random((12, 3)), random.standard_normal(12)
    squares = (inputs.T[:, :, None] - inputs.T[:, None, :]) ** 2
    state = np.array([-0.5, 0.2, -1.0, 0.1, -2.0])
    _, gradient = _evidence(state, squares, targets)
    for index in range(len(state)):
        step = np.zeros_like(state)
        step[index] = 1e-6
        slope = (_evidence(state + step, squares, targets)[0] - _evidence(state - step, squares, targets)[0]) / 2e-6
        assert gradient[index] == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_it_learns_a_smooth_function_and_which_parameter_matters() -> None:
    random = np.random.default_rng(1)
    inputs = random.random((60, 3))
    model = fit(inputs, np.sin(4 * inputs[:, 0]) + 0.01 * random.standard_normal(60))
    points = random.random((40, 3))
    mean, deviation = model.predict(points)
    assert np.abs(mean - np.sin(4 * points[:, 0])).max() < 0.1
    assert model.lengths[0] < 0.3 * min(model.lengths[1:])
    assert (deviation < 0.2).all()


def test_the_same_observations_give_the_same_model() -> None:
    inputs = np.random.default_rng(2).random((20, 2))
    models = [fit(inputs, inputs.sum(axis=1)) for _ in range(2)]
    assert models[0].weights.tolist() == models[1].weights.tolist()


def test_more_observations_at_the_same_settings() -> None:
    inputs = np.random.default_rng(3).random((20, 2))
    model = fit(inputs, inputs.sum(axis=1))
    more = np.array([[0.5, 0.5]])
    expected, before = model.predict(more)
    extended = model.extended(more, expected)
    mean, after = extended.predict(more)
    assert mean == pytest.approx(expected, abs=1e-3)
    assert after < before


def test_expected_improvement_is_the_mean_of_the_excess() -> None:
    drawn = np.random.default_rng(4).normal(1.0, 0.5, 400_000)
    expected = np.maximum(drawn - 1.2, 0).mean()
    assert expected_improvement(np.array([1.0]), np.array([0.5]), 1.2)[0] == pytest.approx(expected, rel=0.02)


def test_expected_gain_is_the_mean_of_the_gained_hypervolume() -> None:
    points = np.array([[3.0, -4.0], [2.0, -2.0]])
    reference = (1.0, -6.0)
    drawn = np.random.default_rng(5).normal(2.5, 0.6, 4000)
    before = hypervolume(points, reference)
    gained = [hypervolume(np.vstack([points, [value, -3.0]]), reference) - before for value in drawn]
    gain = expected_hypervolume_gain(np.array([2.5]), np.array([0.6]), np.array([-3.0]), points, reference)
    assert gain[0] == pytest.approx(np.mean(gained), rel=0.05)
