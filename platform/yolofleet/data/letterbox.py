"""Letterbox: fit an image into the network's input without changing its aspect ratio, and take boxes back out again.

The image is scaled by one factor and the rest is filled with grey 114. Rounding follows the published implementation
(new size rounded half to even, the odd pixel of padding goes to the bottom and to the right), so images are equal to
its images. Shrinking averages areas (as its evaluation does), enlarging interpolates linearly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PADDING_GREY = 114


@dataclass(frozen=True, kw_only=True, slots=True)
class Letterbox:
    """The position of an image inside its letterboxed form."""

    gain: float
    """the factor that was asked for, output pixels per original pixel."""
    pad_left: int
    """grey columns left of the image."""
    pad_top: int
    """grey rows above the image."""
    resized_height: int
    """rows the scaled image really takes (a whole number, at least 1)."""
    resized_width: int
    """columns the scaled image really takes."""
    original_height: int
    """rows of the image before."""
    original_width: int
    """columns of the image before."""

    def undo(self, boxes: Tensor) -> Tensor:
        """Maps boxes (..., 4) x1, y1, x2, y2 of the letterboxed image to the original one, clipped to it.

        The scale is that of the whole-pixel size the image really got, axis by axis: for a thin image
        (4000x20 becomes 640x3) it differs from `gain` by several percent.
        """
        x_scale = self.original_width / self.resized_width
        y_scale = self.original_height / self.resized_height
        offset = boxes.new_tensor([self.pad_left, self.pad_top, self.pad_left, self.pad_top])
        scale = boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])
        restored = (boxes - offset) * scale
        restored[..., 0::2] = restored[..., 0::2].clamp(0, self.original_width)
        restored[..., 1::2] = restored[..., 1::2].clamp(0, self.original_height)
        return restored

    def apply(self, boxes: Tensor) -> Tensor:
        """Maps boxes (..., 4) x1, y1, x2, y2 of the original image into the letterboxed one."""
        x_scale = self.resized_width / self.original_width
        y_scale = self.resized_height / self.original_height
        offset = boxes.new_tensor([self.pad_left, self.pad_top, self.pad_left, self.pad_top])
        scale = boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])
        return boxes * scale + offset


def fit(
    original: tuple[int, int], size: tuple[int, int], *, stride: int, auto: bool, scale_up: bool
) -> tuple[tuple[int, int], Letterbox]:
    """Computes a letterbox without touching pixels.

    Args:
        original: height and width of the image.
        size: height and width of the network's input.
        stride: the model's largest stride in pixels.
        auto: pad only up to the next multiple of `stride` instead of the whole `size`.
        scale_up: allow enlarging; otherwise an image smaller than `size` keeps its pixels.

    Returns:
        Height and width of the output, and the letterbox.

    Raises:
        ValueError: a size or the stride is not positive.
    """
    (height, width), (target_height, target_width) = original, size
    if min(height, width, target_height, target_width, stride) < 1:
        raise ValueError(f"letterbox needs positive sizes: image {original}, size {size}, stride {stride}")
    gain = min(target_height / height, target_width / width)
    if not scale_up:
        gain = min(gain, 1.0)
    resized_height, resized_width = max(1, round(height * gain)), max(1, round(width * gain))
    if auto:
        target_height = math.ceil(resized_height / stride) * stride
        target_width = math.ceil(resized_width / stride) * stride
    # Half to even after taking 0.1 off: an odd row of padding goes to the bottom, an odd column to the right.
    pad_top = max(0, round((target_height - resized_height) / 2 - 0.1))
    pad_left = max(0, round((target_width - resized_width) / 2 - 0.1))
    return (target_height, target_width), Letterbox(
        gain=gain,
        pad_left=pad_left,
        pad_top=pad_top,
        resized_height=resized_height,
        resized_width=resized_width,
        original_height=height,
        original_width=width,
    )


def letterbox(
    image: NDArray[np.uint8], size: tuple[int, int], *, stride: int = 32, auto: bool = False, scale_up: bool = True
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Letterboxes an image.

    Args:
        image: (H, W, 3) uint8.
        size: height and width of the network's input.
        stride: the model's largest stride in pixels.
        auto: pad only up to the next multiple of `stride` instead of the whole `size`.
        scale_up: allow enlarging.

    Returns:
        The new image (h, w, 3) uint8, contiguous, and the letterbox that undoes it.

    Raises:
        ValueError: a size or the stride is not positive.
    """
    height, width = image.shape[:2]
    output_size, box = fit((height, width), size, stride=stride, auto=auto, scale_up=scale_up)
    if (height, width) != (box.resized_height, box.resized_width):
        interpolation = cv2.INTER_AREA if box.gain < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (box.resized_width, box.resized_height), interpolation=interpolation)
    canvas = np.full((*output_size, image.shape[2]), PADDING_GREY, dtype=np.uint8)
    rows = slice(box.pad_top, box.pad_top + box.resized_height)
    columns = slice(box.pad_left, box.pad_left + box.resized_width)
    canvas[rows, columns] = image
    return canvas, box
