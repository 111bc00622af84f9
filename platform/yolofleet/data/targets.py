"""Training targets: the boxes of a sample's images, moved and cut as the images are; boxes cut too far are dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.geometry import LEAST_AREA_SHARE, LEAST_AREA_SHARE_POLYGON, clip_boxes, worth_keeping
from yolofleet.data.mosaic import Placement
from yolofleet.data.records import LabelledImage, boxes_inside

CUT_PIXELS = 0.01
"""A box that loses less than this is not cut."""


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
    """Return the targets of a sample: boxes moved with their images and clipped, without those cut too far.

    Args:
        placements: Positions of the images in the output.
        images: All images of the micro-batch.
    """
    placed = [entry for entry in placements if len(images[entry.image].boxes)]
    if not placed:
        return Targets(np.empty((0, 4)), np.empty(0, dtype=np.int64))
    owners = [images[entry.image] for entry in placed]
    counts = [len(owner.boxes) for owner in owners]
    boxes = np.concatenate([owner.boxes for owner in owners])  # (n, 4), and so on for all boxes of all images
    facts = np.array([(*entry.visible, *entry.region, *entry.scale, *entry.scale) for entry in placed])
    visible, region, scale = np.repeat(facts, counts, axis=0).reshape(-1, 3, 4).transpose(1, 0, 2)  # (n, 4) each
    maps = _Maps(placed, counts)
    # What the cell on the canvas shows of each box, then where that comes to lie in the output.
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
