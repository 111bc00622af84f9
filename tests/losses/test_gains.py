from __future__ import annotations

import pytest

from yolofleet.losses import scaled_gains

P5 = {"box": 0.05, "cls": 0.3, "obj": 0.7, "lr0": 0.01}


def test_gains_are_unchanged_at_the_size_they_were_found_at() -> None:
    assert scaled_gains(P5, num_classes=80, num_levels=3, image_size=640) == pytest.approx(P5)


def test_gains_scale_with_classes_levels_and_image_size() -> None:
    # The golden p6 cases: 10 classes, 4 levels, 256 px.
    scaled = scaled_gains(P5, num_classes=10, num_levels=4, image_size=256)
    assert scaled == pytest.approx({"box": 0.0375, "cls": 0.028125, "obj": 0.084, "lr0": 0.01})
    assert P5["box"] == 0.05
