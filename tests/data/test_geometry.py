"""Maps and warps against plain matrices, corner by corner."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.data.geometry import (
    AxisMap,
    Placement,
    clip_boxes,
    draw_warp,
    visible_targets,
    worth_keeping,
)
from yolofleet.data.records import LabelledImage, Outlines
from yolofleet.specs.hyperparameters import Augmentation

NUMBERS = st.floats(-50, 50)
FACTORS = st.floats(0.1, 8)
MAPS = st.builds(AxisMap, FACTORS, FACTORS, NUMBERS, NUMBERS)


def corners_by_matrix(matrix: np.ndarray, corners: tuple[float, ...]) -> list[float]:
    x1, y1, x2, y2 = corners
    moved = np.array([[x1, y1, 1.0], [x2, y2, 1.0]]) @ matrix.T
    return (moved[:, :2] / moved[:, 2:]).reshape(-1).tolist()


@given(MAPS, MAPS, st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS))
def test_axis_maps_are_their_matrices(first: AxisMap, second: AxisMap, corners: tuple[float, ...]) -> None:
    expected = np.array([[first.scale_x, 0, first.shift_x], [0, first.scale_y, first.shift_y], [0, 0, 1]])
    assert np.array_equal(first.matrix(), expected)
    assert first.rectangle(corners) == pytest.approx(corners_by_matrix(expected, corners))
    assert np.allclose(second.after(first).matrix(), second.matrix() @ first.matrix())
    assert np.allclose(first.inverse().after(first).matrix(), np.eye(3))
    assert AxisMap.of(first.matrix()) == first


@pytest.mark.parametrize("position", [(0, 1), (1, 0), (2, 0), (2, 1)])
def test_a_matrix_that_turns_or_shears_is_no_axis_map(position: tuple[int, int]) -> None:
    matrix = np.eye(3)
    matrix[position] = 1e-6
    assert AxisMap.of(matrix) is None


class Fixed:
    """A generator that draws given numbers."""

    def __init__(self, *numbers: float) -> None:
        self._numbers = np.array(numbers)

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        assert (low, high, size) == (-1.0, 1.0, 8)
        return self._numbers


def test_a_warp_is_the_published_product_of_its_parts() -> None:
    """Translation x shear x rotation and scale x perspective x centring, each by its own drawn number."""
    drawn = (0.5, -0.25, 0.75, 0.2, -0.6, 0.4, 0.3, -0.9)
    settings = Augmentation(degrees=30, translate=0.2, scale=0.5, shear=10, perspective=0.001)
    warp, scale = draw_warp(settings, 320, 160, Fixed(*drawn))  # type: ignore[arg-type]
    assert scale == pytest.approx(0.5 + (1.6 - 0.5) * 0.6)
    angle = math.radians(30 * 0.75)
    centring = np.array([[1, 0, -160], [0, 1, -160], [0, 0, 1]])
    perspective = np.array([[1, 0, 0], [0, 1, 0], [0.0005, -0.00025, 1]])
    turn = np.array([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    turn[:2] *= scale
    shear = np.array([[1, math.tan(math.radians(10) * -0.6), 0], [math.tan(math.radians(10) * 0.4), 1, 0], [0, 0, 1]])
    shift = np.array([[1, 0, (0.5 + 0.2 * 0.3) * 160], [0, 1, (0.5 - 0.2 * 0.9) * 160], [0, 0, 1]])
    assert np.allclose(warp, shift @ shear @ turn @ perspective @ centring)


def test_an_upright_warp_is_that_of_the_same_numbers_with_almost_no_turn() -> None:
    drawn = (0.5, -0.25, 0.75, 0.2, -0.6, 0.4, 0.3, -0.9)
    upright, scale = draw_warp(Augmentation(), 320, 160, Fixed(*drawn))  # type: ignore[arg-type]
    turned, same = draw_warp(Augmentation(degrees=1e-9), 320, 160, Fixed(*drawn))  # type: ignore[arg-type]
    assert scale == same and np.allclose(upright, turned, atol=1e-6)
    assert AxisMap.of(upright) is not None


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.5, 0.0, 30.0], [0.0, 0.8, 20.0], [0.0, 0.0, 1.0]],
        [[0.0, -1.0, 100.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.9, 0.1, 5.0], [-0.05, 0.8, 10.0], [0.0005, 0.001, 1.0]],
    ],
    ids=["upright", "quarter turn", "perspective"],
)
def test_a_target_is_the_box_around_its_moved_corners(matrix: list[list[float]]) -> None:
    box = np.array([[20.0, 30.0, 70.0, 60.0]])
    pixels = np.zeros((100, 100, 3), dtype=np.uint8)
    image = LabelledImage("a", pixels, box, np.array([3]), Outlines.of([None]))
    placement = Placement(0, (0, 0, 100, 100), np.array(matrix), (0, 0, 100, 100), (1.0, 1.0))
    corners = np.array([[x, y, 1.0] for x in (20, 70) for y in (30, 60)]) @ np.array(matrix).T
    corners = corners[:, :2] / corners[:, 2:]
    targets = visible_targets([placement], [image])
    assert np.allclose(targets.boxes, [[*corners.min(axis=0), *corners.max(axis=0)]]) and targets.classes.tolist() == [
        3
    ]


def test_boxes_are_clipped_each_to_its_own_rectangle() -> None:
    boxes = np.array([[-5.0, -6.0, 50.0, 60.0], [3.0, 4.0, 5.0, 6.0], [-9.0, -9.0, -8.0, -8.0]])
    low = np.array([[0.0, 1.0], [4.0, 0.0], [0.0, 0.0]])
    high = np.array([[10.0, 20.0], [9.0, 5.0], [7.0, 7.0]])
    assert clip_boxes(boxes, low, high).tolist() == [[0, 1, 10, 20], [4, 4, 5, 5], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("before", "after", "is_kept"),
    [
        ((0, 0, 10, 10), (0, 0, 2.1, 10), True),
        ((0, 0, 10, 10), (0, 0, 2.0, 10), False),  # both sides must exceed 2 pixels
        ((0, 0, 10, 10), (0, 0, 10, 2.0), False),
        ((0, 0, 10, 10), (5, 5, 8, 8.5), True),
        ((5, 5, 25, 25), (5, 5, 11, 12), True),
        ((5, 5, 25, 25), (5, 5, 11, 11), False),  # 36 of 400 is below a tenth
        ((0, 0, 20, 20), (0, 0, 5, 8), False),  # a tenth is not more than a tenth
        ((0, 0, 60, 3), (0, 0, 59.9, 3), True),
        ((0, 0, 60, 3), (0, 0, 60, 3), False),  # one side is 20 times the other
        ((0, 0, 3, 60), (0, 0, 3, 60), False),
        ((0, 0, 10, 10), (9, 9, 3, 3), False),  # inside out: nothing is left
    ],
)
def test_boxes_are_kept_at_the_published_bounds(
    before: tuple[float, ...], after: tuple[float, ...], is_kept: bool
) -> None:
    assert worth_keeping(np.array([before]), np.array([after]), 0.1).tolist() == [is_kept]


def test_each_box_may_have_a_share_of_its_own() -> None:
    boxes = np.array([[0.0, 0.0, 20.0, 20.0]] * 2)
    seen = np.array([[0.0, 0.0, 4.0, 4.0]] * 2)
    assert worth_keeping(boxes, seen, np.array([0.1, 0.01])).tolist() == [False, True]
