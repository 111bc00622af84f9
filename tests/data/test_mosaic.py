"""Where images lie on a canvas: in the published positions, each as often in one as in another."""

from __future__ import annotations

import numpy as np
import pytest

from yolofleet.data.mosaic import draw_partners, mosaic_of_four, mosaic_of_nine, single_image
from yolofleet.data.order import Purpose, keyed_generator

SIDE = 160


def generator(seed: int = 0) -> np.random.Generator:
    return keyed_generator(seed, Purpose.AUGMENTATION, 1)


@pytest.mark.parametrize("count", [4, 9])
def test_every_image_is_as_often_in_one_position_as_in_another(count: int) -> None:
    """The sample's own too: were it always first, its objects would always lie top left (or in the middle)."""
    num_draws = 4000
    seen = np.zeros((2, count))  # the own image, another one
    for seed in range(num_draws):
        drawn = draw_partners(5, 12, count, generator(seed))
        seen[0, drawn.index(5)] += 1
        if 7 in drawn:
            seen[1, drawn.index(7)] += 1
    expected = seen.sum(axis=1, keepdims=True) / count
    assert seen[0].sum() == num_draws and seen[1].sum() == pytest.approx(num_draws * (count - 1) / 11, rel=0.06)
    assert ((seen - expected) ** 2 / expected).sum(axis=1).max() < 30  # chi squared: 1 in 4,000 with nine positions


def test_four_images_meet_at_a_point_in_the_order_of_reading() -> None:
    sizes = [(200, 100), (90, 120), (SIDE, SIDE), (30, 60)]
    centres = []
    for seed in range(600):
        layout = mosaic_of_four([3, 0, 2, 1], sizes, SIDE, generator(seed))
        assert layout.size == 2 * SIDE and [tile.image for tile in layout.tiles] == [3, 0, 2, 1]
        # The corner of each whole image that is turned to the middle.
        corners = set()
        for number, tile in enumerate(layout.tiles):
            width, height = sizes[tile.image]
            x1, y1, x2, y2 = tile.to_canvas.rectangle((0, 0, width, height))
            assert max(x2 - x1, y2 - y1) == pytest.approx(SIDE)
            assert (x2 - x1) / (y2 - y1) == pytest.approx(width / height, rel=0.03)
            corners.add((round(x1 if number % 2 else x2, 6), round(y1 if number // 2 else y2, 6)))
            shown = (max(x1, 0), max(y1, 0), min(x2, 2 * SIDE), min(y2, 2 * SIDE))
            assert tile.cell == pytest.approx(shown), "cut only by the canvas"
        assert len(corners) == 1
        centres.append(corners.pop())
    found = np.array(centres) / SIDE
    assert found.min() >= 0.49 and found.max() <= 1.5
    assert found.mean(axis=0) == pytest.approx(1.0, abs=0.05) and found.std(axis=0) == pytest.approx(12**-0.5, rel=0.1)


def test_nine_images_lie_around_the_first() -> None:
    """In the published order: the middle, then clockwise from above it; each pushed against the middle one."""
    sizes = [(200, 100), (90, 120), (SIDE, SIDE), (30, 60), (100, 99), (64, 200), (170, 150), (20, 20), (300, 290)]
    windows, num_seen = [], np.zeros(9, dtype=int)
    columns, rows = [1, 1, 2, 2, 2, 1, 0, 0, 0], [1, 0, 0, 1, 2, 2, 2, 1, 0]
    for seed in range(600):
        layout = mosaic_of_nine(list(range(9)), sizes, SIDE, generator(seed))
        boxes = {tile.image: tile.to_canvas.rectangle((0, 0, *sizes[tile.image])) for tile in layout.tiles}
        left, top, right, bottom = boxes[0]  # the middle image always shows
        windows.append((SIDE - left, SIDE - top))
        for tile in layout.tiles:
            num_seen[tile.image] += 1
            x1, y1, x2, y2 = boxes[tile.image]
            column, row = columns[tile.image], rows[tile.image]
            assert max(x2 - x1, y2 - y1) == pytest.approx(SIDE)
            assert (x2, x1, x1)[column] == pytest.approx((left, left, right)[column])
            assert (y2, y1, y1)[row] == pytest.approx((top, top, bottom)[row])
            end_x, end_y = (min(x2, right) if column == 1 else x2), (min(y2, bottom) if row == 1 else y2)
            shown = (max(x1, 0), max(y1, 0), min(end_x, layout.size), min(end_y, layout.size))
            assert tile.cell == pytest.approx(shown)
            assert tile.cell[0] < tile.cell[2] and tile.cell[1] < tile.cell[3]
    found = np.array(windows) / SIDE
    assert found.min() >= -0.01 and found.max() <= 1
    assert found.mean(axis=0) == pytest.approx(0.5, abs=0.05) and found.std(axis=0) == pytest.approx(12**-0.5, rel=0.1)
    assert num_seen[0] == 600 and num_seen[1:].min() > 30 and num_seen[1:].max() <= 600


@pytest.mark.parametrize("size", [(200, 100), (90, 120), (SIDE, SIDE), (7, 5000)])
def test_a_image_alone_lies_whole_in_the_middle(size: tuple[int, int]) -> None:
    layout = single_image(1, [(10, 10), size], SIDE)
    (tile,) = layout.tiles
    x1, y1, x2, y2 = tile.to_canvas.rectangle((0, 0, *size))
    assert layout.size == SIDE and tile.image == 1
    assert tile.cell == pytest.approx((x1, y1, x2, y2)) and max(x2 - x1, y2 - y1) == pytest.approx(SIDE)
    assert abs(x1 - (SIDE - x2)) <= 1 and abs(y1 - (SIDE - y2)) <= 1
