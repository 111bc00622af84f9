"""Where pixels and boxes go: matrices from a canvas to the network's input, and boxes moved by the same matrices.

Coordinates are continuous: pixel i covers the interval [i, i + 1), so a box edge and a pixel edge are the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.specs.hyperparameters import Augmentation

Matrix = NDArray[np.float64]
Rectangle = tuple[float, float, float, float]

LEAST_SIDE_PIXELS = 2.0
LEAST_AREA_SHARE = 0.10
LEAST_AREA_SHARE_POLYGON = 0.01
MOST_ASPECT = 20.0


@dataclass(frozen=True, slots=True)
class AxisMap:
    """A map that only moves and scales: x * scale_x + shift_x, the same for y. Plain numbers: it is made very often."""

    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float

    def after(self, first: AxisMap) -> AxisMap:
        """Return the map that does ``first``, then this one."""
        return AxisMap(
            self.scale_x * first.scale_x,
            self.scale_y * first.scale_y,
            self.scale_x * first.shift_x + self.shift_x,
            self.scale_y * first.shift_y + self.shift_y,
        )

    def inverse(self) -> AxisMap:
        """Return the inverse map."""
        return AxisMap(1 / self.scale_x, 1 / self.scale_y, -self.shift_x / self.scale_x, -self.shift_y / self.scale_y)

    def rectangle(self, corners: Rectangle) -> Rectangle:
        """Return a rectangle x1, y1, x2, y2 moved."""
        x1, y1, x2, y2 = corners
        scale_x, scale_y, shift_x, shift_y = self.scale_x, self.scale_y, self.shift_x, self.shift_y
        return x1 * scale_x + shift_x, y1 * scale_y + shift_y, x2 * scale_x + shift_x, y2 * scale_y + shift_y

    def matrix(self) -> Matrix:
        """Return the map as a 3x3 matrix."""
        return scaling_and_shift(self.scale_x, self.scale_y, self.shift_x, self.shift_y)

    @staticmethod
    def of(matrix: Matrix) -> AxisMap | None:
        """Return the map of a 3x3 matrix; None if it turns, shears or has perspective."""
        (scale_x, shear_x, shift_x), (shear_y, scale_y, shift_y), (perspective_x, perspective_y, _) = matrix.tolist()
        if shear_x or shear_y or perspective_x or perspective_y:
            return None
        return AxisMap(scale_x, scale_y, shift_x, shift_y)


def scaling_and_shift(scale_x: float, scale_y: float, shift_x: float, shift_y: float) -> Matrix:
    """Return the 3x3 matrix of x * scale_x + shift_x, y * scale_y + shift_y."""
    return np.array([[scale_x, 0.0, shift_x], [0.0, scale_y, shift_y], [0.0, 0.0, 1.0]])


def draw_warp(
    settings: Augmentation, canvas_size: int, output_size: int, generator: np.random.Generator
) -> tuple[Matrix, float]:
    """Draw the published random warp T·S·R·P·C from a square canvas to the square output.

    C moves the canvas' centre to the origin, P adds perspective, R rotates and scales, S shears, T moves the origin to
    about the output's centre. All numbers are drawn whether they are used or not, so that no setting shifts the others.

    Returns:
        The 3x3 matrix and the scale in it.
    """
    uniform = generator.uniform(-1.0, 1.0, size=8).tolist()
    low, high = 1.0 - settings.scale, 1.1 + settings.scale
    scale = 1.0 if settings.keeps_size else low + (high - low) * (uniform[3] + 1.0) / 2.0
    shift_x, shift_y = ((0.5 + settings.translate * value) * output_size for value in uniform[6:8])
    half = canvas_size / 2
    if settings.keeps_shape:
        return scaling_and_shift(scale, scale, shift_x - scale * half, shift_y - scale * half), scale
    angle = math.radians(settings.degrees) * uniform[2]
    shear_x, shear_y = (math.tan(math.radians(settings.shear) * value) for value in uniform[4:6])
    centre = scaling_and_shift(1.0, 1.0, -half, -half)
    perspective = np.eye(3)
    perspective[2, :2] = settings.perspective * uniform[0], settings.perspective * uniform[1]
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    rotation = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    shear = np.array([[1.0, shear_x, 0.0], [shear_y, 1.0, 0.0], [0.0, 0.0, 1.0]])
    translation = scaling_and_shift(1.0, 1.0, shift_x, shift_y)
    return translation @ shear @ rotation @ perspective @ centre, scale


def move_points(points: NDArray[np.float64], matrix: Matrix) -> NDArray[np.float64]:
    """Return (n, 2) points moved by a 3x3 matrix."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[:, :2] / moved[:, 2:] if matrix[2, :2].any() else moved[:, :2]


def move_boxes(boxes: NDArray[np.float64], matrix: Matrix) -> NDArray[np.float64]:
    """Return the (n, 4) upright boxes x1, y1, x2, y2 around boxes moved by a 3x3 matrix."""
    if not len(boxes):
        return boxes
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)  # (4n, 2): four corners of each box
    moved = move_points(corners, matrix).reshape(-1, 4, 2)
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def clip_boxes(boxes: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, 4) boxes clipped to one rectangle each, from ``low`` (n, 2) to ``high`` (n, 2)."""
    corners = boxes.reshape(-1, 2, 2)
    return np.minimum(np.maximum(corners, low[:, None]), high[:, None]).reshape(-1, 4)


def worth_keeping(
    before: NDArray[np.float64], after: NDArray[np.float64], least_share: float | NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which boxes are still targets after a warp (the published rule).

    Args:
        before: (n, 4) boxes on the canvas, multiplied by the warp's scale.
        after: (n, 4) boxes in the output, clipped to it.
        least_share: Share of the area that must be left.

    Returns:
        (n,) True where both sides exceed 2 pixels, enough of the area is left, and no side is 20 times the other.
    """
    old, new = before[:, 2:] - before[:, :2], np.maximum(after[:, 2:] - after[:, :2], 0.0)
    width, height = new[:, 0], new[:, 1]
    share = width * height / np.maximum(old[:, 0] * old[:, 1], 1e-12)
    aspect = np.maximum(width, height) / np.maximum(np.minimum(width, height), 1e-12)
    kept: NDArray[np.bool_] = (
        (width > LEAST_SIDE_PIXELS) & (height > LEAST_SIDE_PIXELS) & (share > least_share) & (aspect < MOST_ASPECT)
    )
    return kept
