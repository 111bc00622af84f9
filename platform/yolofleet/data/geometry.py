"""Where pixels and boxes go: the warp of a sample, the placements of its images, and their boxes as its targets.

Boxes are moved by the matrices that pixels are drawn with, clipped as the images are, and dropped where too little is
left of them. Coordinates are continuous: pixel i covers the interval [i, i + 1), so a box edge and a pixel edge are the
same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.records import LabelledImage, boxes_inside
from yolofleet.specs.hyperparameters import Augmentation

Matrix = NDArray[np.float64]
Rectangle = tuple[float, float, float, float]

LEAST_SIDE_PIXELS = 2.0
LEAST_AREA_SHARE = 0.10
LEAST_AREA_SHARE_POLYGON = 0.01
MOST_ASPECT = 20.0
CUT_PIXELS = 0.01
"""A box that loses less than this is not cut."""


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
    scale = 1.0 if _keeps_size(settings) else low + (high - low) * (uniform[3] + 1.0) / 2.0
    shift_x, shift_y = ((0.5 + settings.translate * value) * output_size for value in uniform[6:8])
    half = canvas_size / 2
    if _keeps_shape(settings):
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


def _keeps_shape(settings: Augmentation) -> bool:
    """Return whether an image is only moved and scaled, never turned or sheared."""
    return settings.degrees == 0 and settings.shear == 0 and settings.perspective == 0


def _keeps_size(settings: Augmentation) -> bool:
    """Return whether an image is neither moved nor scaled nor turned: then the output is the letterboxed image."""
    return _keeps_shape(settings) and settings.translate == 0 and settings.scale == 0


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


@dataclass(frozen=True)
class Placement:
    """The position of an image in the output."""

    image: int
    """Its number in the micro-batch."""
    visible: Rectangle
    """x1, y1, x2, y2 in the image's pixels: the part that its cell on the canvas shows."""
    matrix: Matrix
    """3x3, from image pixels to output pixels."""
    region: Rectangle
    """x1, y1, x2, y2 in the output: nothing of the image lies outside."""
    scale: tuple[float, float]
    """(x, y) from image to output without any turn, for comparing areas."""

    @property
    def is_upright(self) -> bool:
        """Whether the image is only moved and scaled."""
        return bool(self.matrix[0, 1] == self.matrix[1, 0] == self.matrix[2, 0] == self.matrix[2, 1] == 0)


@dataclass(frozen=True)
class Targets:
    """Boxes of a sample: (n, 4) x1, y1, x2, y2 in output pixels, and (n,) class indices."""

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]

    def normalised(self, side: int) -> NDArray[np.float32]:
        """Return (n, 5) class, centre x, centre y, width, height as shares of the side."""
        centres = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return np.concatenate([self.classes[:, None], centres / side, sides / side], axis=1).astype(np.float32)


def join_targets(parts: list[Targets]) -> Targets:
    """Return the targets of several parts as one."""
    return Targets(np.concatenate([part.boxes for part in parts]), np.concatenate([part.classes for part in parts]))


def visible_targets(placements: list[Placement], images: list[LabelledImage]) -> Targets:
    """Return the targets of a sample: boxes moved with their images and clipped, without those cut too far."""
    placed = [entry for entry in placements if len(images[entry.image].boxes)]
    if not placed:
        return Targets(np.empty((0, 4)), np.empty(0, dtype=np.int64))
    owners = [images[entry.image] for entry in placed]
    counts = [len(owner.boxes) for owner in owners]
    boxes = np.concatenate([owner.boxes for owner in owners])  # (n, 4), and so on for all boxes of all images
    facts = np.array([(*entry.visible, *entry.region, *entry.scale, *entry.scale) for entry in placed])
    visible, region, scale = np.repeat(facts, counts, axis=0).reshape(-1, 3, 4).transpose(1, 0, 2)  # (n, 4) each
    maps = _Maps(placed, counts)
    # The part of each box in its cell of the canvas, then that part moved to the output and cut by its region.
    seen = clip_boxes(boxes, visible[:, :2], visible[:, 2:])
    after = clip_boxes(maps.move_boxes(seen), region[:, :2], region[:, 2:])
    least_share: float | NDArray[np.float64] = LEAST_AREA_SHARE
    if any(owner.outlines.owners.size for owner in owners):
        # The part of a cut box may be larger than the part of its object: where there is a polygon, fit the box to it.
        has_polygon = np.concatenate([owner.outlines.has_polygon for owner in owners])
        is_cut = (np.abs(after - maps.move_boxes(boxes)) > CUT_PIXELS).any(axis=1) | (not maps.is_upright)
        touched = (after[:, 2:] > after[:, :2]).all(axis=1)
        _tighten(after, is_cut & touched & has_polygon, owners, maps, region)
        least_share = np.where(has_polygon, LEAST_AREA_SHARE_POLYGON, LEAST_AREA_SHARE)
    kept = worth_keeping(seen * scale, after, least_share)
    return Targets(after[kept], np.concatenate([owner.classes for owner in owners])[kept])


class _Maps:
    """The maps of all boxes of a sample, each that of its image. Upright ones, the usual case, need no matrix.

    Args:
        placed: Positions of the images in the output.
        counts: The number of boxes of each of them; n in all.
    """

    def __init__(self, placed: list[Placement], counts: list[int]) -> None:
        self.is_upright = all(entry.is_upright for entry in placed)
        self._matrix = np.repeat(np.array([entry.matrix for entry in placed]), counts, axis=0)  # (n, 3, 3)
        self._gain = self._matrix[:, [0, 1], [0, 1]]  # (n, 2)
        self._shift = self._matrix[:, :2, 2]  # (n, 2)

    def move_boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the upright boxes (n, 4) around boxes moved each by its map."""
        if self.is_upright:  # and no map mirrors, so corners stay where they are
            corners = boxes.reshape(-1, 2, 2) * self._gain[:, None] + self._shift[:, None]
            return np.asarray(corners.reshape(-1, 4))
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        moved = self._move_points(corners, self._matrix)
        return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)

    def move_edges(self, edges: NDArray[np.float64], owners: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return edges (e, 2, 2) moved by the maps of the boxes (e,) that they belong to."""
        if self.is_upright:
            return np.asarray(edges * self._gain[owners][:, None] + self._shift[owners][:, None])
        return self._move_points(edges, self._matrix[owners])

    @staticmethod
    def _move_points(points: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points (n, p, 2) moved by matrices (n, 3, 3)."""
        moved = points @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2]  # (n, p, 3) homogeneous
        return np.asarray(moved[..., :2] / moved[..., 2:])


def _tighten(
    after: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    owners: list[LabelledImage],
    maps: _Maps,
    region: NDArray[np.float64],
) -> None:
    """Replace the wanted boxes by those around the visible parts of their polygons, in place."""
    rows = np.flatnonzero(wanted)
    if not len(rows):
        return
    edges, numbers, first = [], [], 0
    for owner in owners:
        own = owner.outlines.owners
        chosen = wanted[first : first + len(owner.boxes)][own]  # (e,) edges of the wanted objects
        edges.append(owner.outlines.ends[chosen])
        numbers.append(own[chosen] + first)
        first += len(owner.boxes)
    boxes_of_edges = np.concatenate(numbers)
    moved = maps.move_edges(np.concatenate(edges), boxes_of_edges)
    tight = boxes_inside(moved, boxes_of_edges, region[rows])
    low, high = np.maximum(tight[:, :2], after[rows, :2]), np.minimum(tight[:, 2:], after[rows, 2:])
    after[rows] = np.concatenate([low, high], axis=1)  # a turned cell cuts, too: within both
