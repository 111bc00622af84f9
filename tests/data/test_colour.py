"""Colour changes as far as the published recipe says, evenly, and leaves what it should."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.data.augment import colour_matrix, draw_colour
from yolofleet.data.order import Purpose, keyed_generator
from yolofleet.specs.hyperparameters import Augmentation


def generator(seed: int = 0) -> np.random.Generator:
    return keyed_generator(seed, Purpose.AUGMENTATION, 1)


def hue_shifts(settings: Augmentation, num_draws: int) -> np.ndarray:
    """Degrees by which each draw turns each of 360 hues: (draws, 360)."""
    hues = np.arange(360, dtype=np.float32)
    circle = np.stack([hues, np.full_like(hues, 0.5), np.full_like(hues, 0.6)], axis=1)[None]
    colours = cv2.cvtColor(circle, cv2.COLOR_HSV2RGB)
    matrices = [draw_colour(settings, generator(seed)) for seed in range(num_draws)]
    turned = [cv2.cvtColor(cv2.transform(colours, m), cv2.COLOR_RGB2HSV)[0, :, 0] for m in matrices]
    return (np.array(turned) - hues + 180) % 360 - 180


@pytest.mark.parametrize("strength", [0.015, 0.1])
def test_hues_turn_as_far_as_the_published_gain_turns_them(strength: float) -> None:
    """The published hue is multiplied by a gain of 1 - strength to 1 + strength; over all hues both turn as far."""
    shifts = hue_shifts(Augmentation(hsv_h=strength, hsv_s=0, hsv_v=0), 1000)
    published = np.random.default_rng(0).uniform(-strength, strength, (1000, 1)) * np.arange(360)
    assert np.abs(shifts).mean() == pytest.approx(np.abs(published).mean(), rel=0.12)
    assert np.sqrt((shifts**2).mean()) == pytest.approx(np.sqrt((published**2).mean()), rel=0.08)
    assert abs(shifts.mean()) < 0.1 * np.abs(shifts).mean()


def test_colour_is_drawn_evenly_from_the_published_ranges() -> None:
    """Hue, saturation and brightness, read back from the matrices: each uniform, none bound to another."""
    strengths = Augmentation()
    to_chroma = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    rows = []
    for seed in range(3000):
        matrix = draw_colour(strengths, generator(seed))
        assert matrix is not None
        brightness = float(matrix.sum(axis=1).mean())  # grey stays grey
        chroma = (to_chroma @ matrix @ np.linalg.inv(to_chroma) / brightness)[1:, 1:]
        rows.append([np.arctan2(chroma[1, 0], chroma[0, 0]), np.hypot(chroma[1, 0], chroma[0, 0]), brightness])
    ranges = [(-np.pi * 0.015, np.pi * 0.015), (0.3, 1.7), (0.6, 1.4)]
    shares = np.array(
        [(column - low) / (high - low) for column, (low, high) in zip(np.array(rows).T, ranges, strict=True)]
    )
    assert shares.min() > -1e-3 and shares.max() < 1 + 1e-3
    for share in shares:
        # The largest gap between the empirical and the uniform distribution: 1 in 1,000 exceeds 1.95 / sqrt(n).
        assert np.abs(np.sort(share) - (np.arange(3000) + 0.5) / 3000).max() < 1.95 / 3000**0.5
    assert np.abs(np.corrcoef(shares) - np.eye(3)).max() < 0.06


@given(st.floats(-3, 3), st.floats(0, 2), st.floats(0.1, 2))
def test_hue_and_saturation_leave_the_brightness_of_a_colour(hue: float, saturation: float, brightness: float) -> None:
    """Luma as the television standards define it."""
    luma = np.array([0.299, 0.587, 0.114])
    matrix = colour_matrix(hue, saturation, brightness)
    assert luma @ matrix == pytest.approx(luma * brightness, abs=1e-5)


@pytest.mark.parametrize("name", ["hsv_h", "hsv_s", "hsv_v"])
def test_each_strength_alone_changes_colours_and_none_at_all_draws_no_matrix(name: str) -> None:
    nothing = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
    assert draw_colour(Augmentation(**nothing), generator()) is None
    matrix = draw_colour(Augmentation(**nothing | {name: 0.5}), generator())
    assert matrix is not None and np.abs(matrix - np.eye(3)).max() > 0.01


@given(st.floats(-3, 3), st.floats(0, 2))
def test_a_hue_is_turned_by_its_angle_and_stretched_by_its_gain(hue: float, saturation: float) -> None:
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    found = to_yiq @ colour_matrix(hue, saturation, 1.0) @ np.linalg.inv(to_yiq)
    turned = saturation * np.array([[np.cos(hue), -np.sin(hue)], [np.sin(hue), np.cos(hue)]])
    assert np.allclose(found[1:, 1:], turned, atol=1e-5) and np.allclose(found[0], [1, 0, 0], atol=1e-5)
