from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.core.errors import UserError
from yolofleet.data.anchors import anchor_fit, fit_anchors

TINY = (((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)), ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)))


def test_a_box_is_reached_by_the_rule_of_the_loss() -> None:
    anchors = (((10.0, 10.0),), ((40.0, 40.0),))
    sizes = np.array([[10, 10], [39.9, 10], [40.1, 10], [2.4, 20], [160.1, 160]])
    found = anchor_fit(sizes, anchors, 4.0)
    reached = [max(w / a, a / w, h / a, a / h) < 4 for w, h in sizes for a in (10, 40)]
    assert found.recall == pytest.approx(np.reshape(reached, (5, 2)).any(1).mean())
    assert found.anchors_per_box == pytest.approx(np.sum(reached) / 5)
    assert found.level_shares == pytest.approx(np.reshape(reached, (5, 2)).mean(0).tolist())


def test_no_boxes_is_no_error() -> None:
    assert anchor_fit(np.empty((0, 2)), TINY, 4.0).recall == 0.0
    with pytest.raises(UserError, match="nothing to fit"):
        fit_anchors(np.full((5, 2), 1.0), 2, 3, 4.0, seed=0)


def test_many_boxes_are_measured_in_pieces_alike() -> None:
    sizes = np.random.default_rng(0).lognormal(3, 1, (70_000, 2))
    whole, parts = anchor_fit(sizes, TINY, 4.0), [anchor_fit(part, TINY, 4.0) for part in np.split(sizes, 7)]
    assert whole.recall == pytest.approx(np.mean([part.recall for part in parts]))
    assert whole.fit == pytest.approx(np.mean([part.fit for part in parts]))


def test_fit_anchors_find_the_clusters() -> None:
    generator = np.random.default_rng(1)
    centres = np.array([[6, 8], [20, 14], [30, 60], [90, 70], [150, 260], [400, 300]], dtype=float)
    sizes = np.concatenate([centre * generator.lognormal(0, 0.05, (300, 2)) for centre in centres])
    found = np.array(fit_anchors(sizes, 2, 3, 4.0, seed=0)).reshape(-1, 2)
    assert found == pytest.approx(centres, rel=0.15)


def test_fitting_helps_where_the_model_s_anchors_miss() -> None:
    sizes = np.random.default_rng(2).lognormal(1.5, 0.5, (3000, 2)) * (6.0, 1.0)  # small and long
    before = anchor_fit(sizes, TINY, 4.0)
    after = anchor_fit(sizes, fit_anchors(sizes, 2, 3, 4.0, seed=0), 4.0)
    assert before.recall < 0.9
    assert after.recall > 0.98
    assert after.fit > before.fit


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**40))
def test_any_boxes_give_usable_anchors(count: int, num_levels: int, num_anchors: int, seed: int) -> None:
    sizes = np.random.default_rng(seed).lognormal(3, 1, (count, 2)) + 2
    anchors = fit_anchors(sizes, num_levels, num_anchors, 4.0, seed)
    assert anchors == fit_anchors(sizes, num_levels, num_anchors, 4.0, seed)
    table = np.array(anchors)
    assert table.shape == (num_levels, num_anchors, 2)
    assert (table > 0).all() and np.isfinite(table).all()
    areas = table.prod(axis=2).ravel()
    assert (np.diff(areas) >= -0.02 * areas[1:]).all()  # rounded to hundredths after sorting


def test_equal_boxes_are_no_problem() -> None:
    assert np.array(fit_anchors(np.full((10, 2), 30.0), 3, 3, 4.0, seed=0)) == pytest.approx(30.0, rel=0.3)
