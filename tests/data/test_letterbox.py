"""The letterbox: equal to the published numbers, and exactly undone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.data.letterbox import PADDING_GREY, fit, letterbox

GOLDEN = Path(__file__).parents[1] / "golden"
SIDES = st.integers(1, 3000)


def test_sizes_and_padding_equal_the_published_cases() -> None:
    cases = json.loads((GOLDEN / "letterbox_cases.json").read_text())
    assert len(cases) == 10
    for case in cases:
        size = case["new_shape"] if isinstance(case["new_shape"], list) else [case["new_shape"]] * 2
        options = case["kw"]
        output_size, box = fit(
            tuple(case["in_hw"]),
            tuple(size),
            stride=options.get("stride", 32),
            auto=options["auto"],
            scale_up=options.get("scaleup", True),
        )
        assert list(output_size) == case["out_hw"]
        assert (box.pad_top, box.pad_left) == (case["top"], case["left"])
        assert box.gain == pytest.approx(case["ratio"][0], rel=1e-12)


@pytest.mark.parametrize(("number", "size", "auto"), [(8, (64, 64), True), (9, (64, 96), False)])
def test_pixels_equal_the_published_images(number: int, size: tuple[int, int], auto: bool) -> None:
    images = np.load(GOLDEN / "letterbox.npz")
    source, _ = letterbox(images[f"in_{number}"], size, stride=32, auto=auto, scale_up=True)
    np.testing.assert_array_equal(source, images[f"out_{number}"])


@given(
    SIDES, SIDES, st.integers(1, 40), st.integers(1, 40), st.sampled_from([32, 64, 128]), st.booleans(), st.booleans()
)
def test_the_image_lies_inside_and_boxes_come_back(
    height: int, width: int, rows: int, columns: int, stride: int, auto: bool, scale_up: bool
) -> None:
    size = (rows * stride, columns * stride)
    (output_height, output_width), box = fit((height, width), size, stride=stride, auto=auto, scale_up=scale_up)
    assert output_height % stride == output_width % stride == 0
    assert output_height <= size[0] and output_width <= size[1]
    assert 0 <= box.pad_top and box.pad_top + box.resized_height <= output_height
    assert 0 <= box.pad_left and box.pad_left + box.resized_width <= output_width
    if auto:
        assert output_height - box.resized_height < stride and output_width - box.resized_width < stride
    boxes = torch.tensor([[0, 0, width, height], [width / 4, height / 3, width / 2, height]], dtype=torch.float64)
    torch.testing.assert_close(box.undo(box.apply(boxes)), boxes, rtol=0, atol=1e-6)


def test_boxes_outside_the_image_are_clipped_to_it() -> None:
    _, box = fit((100, 200), (640, 640), stride=32, auto=False, scale_up=True)
    torch.testing.assert_close(
        box.undo(torch.tensor([[-50.0, -50.0, 900.0, 900.0]])), torch.tensor([[0.0, 0.0, 200.0, 100.0]])
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 4000), (3000, 3), (7, 64)])
def test_thin_images_keep_at_least_one_pixel(height: int, width: int) -> None:
    source, box = letterbox(np.zeros((height, width, 3), np.uint8), (64, 64), stride=32, auto=True, scale_up=True)
    assert source.shape[0] % 32 == source.shape[1] % 32 == 0
    assert (source == 0).all(axis=2).sum() == box.resized_height * box.resized_width


def test_padding_is_grey_and_pixels_of_the_right_size_are_kept() -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)
    source, box = letterbox(image, (64, 64), stride=32, auto=False, scale_up=True)
    np.testing.assert_array_equal(source[box.pad_top : box.pad_top + 32], image)
    assert (source[: box.pad_top] == PADDING_GREY).all() and (source[box.pad_top + 32 :] == PADDING_GREY).all()


def test_an_empty_size_is_refused() -> None:
    with pytest.raises(ValueError, match="positive sizes"):
        fit((0, 10), (64, 64), stride=32, auto=False, scale_up=True)
