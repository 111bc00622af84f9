"""Images with boxes: everything drawn is inside, legible, and in the class's colour."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from yolofleet.data import draw
from yolofleet.data.draw import class_colour, contact_sheet, draw_detections, encode


def record(category_id: int, box: tuple[float, ...], **more: Any) -> dict[str, Any]:
    return {"category_id": category_id, "category_name": "traffic light", "bbox": list(box), "score": 0.5, **more}


def test_neighbouring_classes_have_distinct_colours() -> None:
    colours = [np.array(class_colour(number), float) for number in range(12)]
    distances = [np.abs(a - b).sum() for index, a in enumerate(colours) for b in colours[:index]]
    assert min(distances) > 60
    assert class_colour(3) == class_colour(3)


@pytest.mark.parametrize("size", [(1, 1), (20, 4000), (300, 3), (120, 160), (480, 640), (1500, 2000)])
def test_any_size_of_image_is_drawn_on(size: tuple[int, int]) -> None:
    height, width = size
    image = np.full((*size, 3), 120, np.uint8)
    boxes = [(0, 0, width, height), (-50, -50, 2 * width, 2 * height), (width - 1, height - 1, 5, 5), (0, 0, 0, 0)]
    canvas = draw_detections(image, [record(number, box) for number, box in enumerate(boxes)])
    assert canvas.width >= width and canvas.height >= height
    assert max(canvas.size) >= 480 and canvas.width >= 200
    assert (image == 120).all()
    drawn = np.asarray(canvas).reshape(-1, 3)
    assert (drawn == np.array(class_colour(0))).all(axis=1).any()


@pytest.mark.parametrize("box", [(0, 0, 40, 20), (600, 0, 40, 20), (0, 460, 40, 20), (600, 460, 40, 20)])
def test_a_label_at_the_border_is_whole(box: tuple[float, ...]) -> None:
    blank = np.full((480, 640, 3), 255, np.uint8)
    middle = draw_detections(blank, [record(4, (300, 240, *box[2:]))])
    corner = draw_detections(blank, [record(4, box)])
    amounts = [int((np.asarray(canvas) == np.array(class_colour(4))).all(axis=2).sum()) for canvas in (middle, corner)]
    # The label's area is the same at every position; only the box's outline may be cut or covered by it.
    assert abs(amounts[0] - amounts[1]) < 400


@pytest.mark.parametrize("count", [2, 20, 200])
def test_labels_cover_no_other_label_and_leave_most_of_the_image(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[draw.Rectangle] = []
    position = draw._label_position

    def noted(corners: Any, size: Any, *more: Any) -> tuple[float, float] | None:
        found = position(corners, size, *more)
        if found is not None:
            placed.append((*found, found[0] + size[0], found[1] + size[1]))
        return found

    monkeypatch.setattr(draw, "_label_position", noted)
    rng = np.random.default_rng(count)
    boxes = [(*rng.uniform(0, 400, 2), *rng.uniform(5, 100, 2)) for _ in range(count)]
    records = [record(1, box, score=float(rng.random())) for box in boxes]
    canvas = draw_detections(np.zeros((480, 480, 3), np.uint8), [*records, record(1, boxes[0], label="")], side=400)
    assert canvas.size == (400, 400)
    assert not any(draw._cover(one, other) for number, one in enumerate(placed) for other in placed[:number])
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in placed)
    assert (len(placed) == 2) if count == 2 else covered < 0.25 * 400 * 400


def test_a_label_leaves_small_boxes_free_where_it_can() -> None:
    below = (40.0, 30.0, 60.0, 50.0)  # a small box just above the large one, where its label would stand
    at = draw._label_position((40, 50, 240, 250), (80, 20), (400, 400), [], [below])
    assert at is not None and not draw._cover((*at, at[0] + 80, at[1] + 20), below)
    assert draw._label_position((0, 0, 9, 9), (80, 20), (81, 21), [(0, 0, 81, 21)], []) is None


def test_long_names_crowds_and_names_from_outside_are_drawn() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    long_name = record(1, (10, 10, 50, 50), category_name="a name without an end " * 40)
    crowd = {"category_id": 2, "bbox": [20, 20, 60, 60], "iscrowd": True}
    unnamed = {"category_id": 77, "bbox": [20, 20, 6, 6]}
    assert draw_detections(image, [long_name, crowd, unnamed], names={2: "кот"}).size == (500, 500)


@pytest.mark.parametrize("names", [("кот", "ток"), ("犬", "猫"), ("αβγ", "γβα"), ("bär", "bår"), ("שלום", "םולש")])
@pytest.mark.parametrize("side", [160, 480, 2000])
def test_names_in_other_scripts_are_spelled_out(names: tuple[str, str], side: int) -> None:
    image = np.full((side, side, 3), 120, np.uint8)
    box = (side * 0.1, side * 0.4, side * 0.8, side * 0.5)
    # A typeface without these letters draws the same empty frame for each, so both would look alike.
    images = [np.asarray(draw_detections(image, [record(1, box, category_name=name)])) for name in names]
    assert (images[0] != images[1]).any()


def test_images_are_encoded_and_put_on_a_sheet() -> None:
    canvas = draw_detections(np.zeros((100, 100, 3), np.uint8), [])
    assert Image.open(io.BytesIO(encode(canvas))).format == "JPEG"
    assert Image.open(io.BytesIO(encode(canvas, "png"))).size == canvas.size
    assert contact_sheet([canvas] * 5, columns=4, cell=100).size == (440, 224)
    assert contact_sheet([]).width > 0
