"""Fronts and hypervolumes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.search.history import best_first
from yolofleet.search.pareto import front, hypervolume

POINTS = st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=12)


@given(POINTS)
def test_a_front_beats_all_others_and_none_of_itself(rows: list[list[int]]) -> None:
    points = np.array(rows, dtype=float)
    kept = front(points)
    for index, point in enumerate(points):
        beaten = any((other >= point).all() and (other > point).any() for other in points)
        assert not (kept[index] and beaten)
        if not kept[index]:
            assert beaten or (points[:index] == point).all(axis=1).any()


@given(POINTS)
def test_hypervolume_counts_the_cells_below_the_points(rows: list[list[int]]) -> None:
    points = np.array(rows, dtype=float)
    cells = np.zeros((7, 7, 7), dtype=bool)
    for x, y, z in rows:
        cells[:x, :y, :z] = True
    assert hypervolume(points, (0, 0, 0)) == pytest.approx(cells.sum())
    flat = np.zeros((7, 7), dtype=bool)
    for x, y, _ in rows:
        flat[:x, :y] = True
    assert hypervolume(points[:, :2], (0, 0)) == pytest.approx(flat.sum())
    assert hypervolume(points[:, :1], (0,)) == points[:, 0].max()


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
def test_points_that_do_not_beat_the_reference_are_worth_nothing(num_objectives: int) -> None:
    points = np.full((2, num_objectives), 2.0)
    assert hypervolume(points, (2.0,) * num_objectives) == 0.0
    assert hypervolume(points[:0], (0.0,) * num_objectives) == 0.0
    assert hypervolume(points, (1.5,) * num_objectives) == pytest.approx(0.5**num_objectives)


def test_several_objectives_are_ranked_in_layers() -> None:
    assert best_first([[1, 1], [3, 0], [0, 3], [2, 2]]) == [1, 3, 2, 0]
    assert best_first([[1.0], [3.0], [2.0]]) == [1, 2, 0]
    assert best_first([]) == []
