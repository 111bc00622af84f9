"""Training targets: which boxes are still there when a sample's pictures lie where they were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.geometry import LEAST_AREA_SHARE, LEAST_AREA_SHARE_POLYGON, clip_boxes, worth_keeping
from yolofleet.data.outlines import boxes_inside
from yolofleet.data.picture import Picture
from yolofleet.data.render import Placement

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


def joined(parts: list[Targets]) -> Targets:
    """Return the targets of several parts as one."""
    return Targets(np.concatenate([part.boxes for part in parts]), np.concatenate([part.classes for part in parts]))


def seen_targets(placements: list[Placement], pictures: list[Picture]) -> Targets:
    """Return the targets of a sample: boxes moved with their pictures, clipped, and only those of which enough is left.

    Args:
        placements: Where the pictures lie.
        pictures: All pictures of the micro-batch.
    """
    placed = [entry for entry in placements if len(pictures[entry.picture].boxes)]
    if not placed:
        return Targets(np.empty((0, 4)), np.empty(0, dtype=np.int64))
    owners = [pictures[entry.picture] for entry in placed]
    counts = [len(owner.boxes) for owner in owners]
    boxes = np.concatenate([owner.boxes for owner in owners])  # (n, 4), and so on for all boxes of all pictures
    facts = np.array([(*entry.visible, *entry.region, *entry.scale, *entry.scale) for entry in placed])
    visible, region, scale = np.split(np.repeat(facts, counts, axis=0), 3, axis=1)  # (n, 4) each
    matrix = np.repeat(np.array([entry.matrix for entry in placed]), counts, axis=0)  # (n, 3, 3)
    seen = clip_boxes(boxes, visible[:, :2], visible[:, 2:])
    after = clip_boxes(_moved(seen, matrix), region[:, :2], region[:, 2:])
    has_polygon = np.concatenate([owner.outlines.has_polygon for owner in owners])
    if has_polygon.any():
        is_turned = np.repeat([not entry.is_upright for entry in placed], counts)
        is_cut = (np.abs(after - _moved(boxes, matrix)) > CUT_PIXELS).any(axis=1) | is_turned
        touched = (after[:, 2:] > after[:, :2]).all(axis=1)
        _tighten(after, is_cut & touched & has_polygon, owners, matrix, region)
    least_share = np.where(has_polygon, LEAST_AREA_SHARE_POLYGON, LEAST_AREA_SHARE)
    kept = worth_keeping(seen * scale, after, least_share)
    return Targets(after[kept], np.concatenate([owner.classes for owner in owners])[kept])


def _moved(boxes: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upright boxes (n, 4) around boxes moved by a 3x3 matrix each."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    moved = _moved_points(corners, matrix)
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def _moved_points(points: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points (n, p, 2) moved by matrices (n, 3, 3)."""
    moved = points @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2]  # (n, p, 3) homogeneous
    return moved[..., :2] / moved[..., 2:]


def _tighten(
    after: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    owners: list[Picture],
    matrix: NDArray[np.float64],
    region: NDArray[np.float64],
) -> None:
    """Replace the wanted boxes by those around what is seen of their polygons, in place."""
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
    moved = _moved_points(np.concatenate(edges), matrix[boxes_of_edges])
    tight = boxes_inside(moved, boxes_of_edges, region[rows])
    low, high = np.maximum(tight[:, :2], after[rows, :2]), np.minimum(tight[:, 2:], after[rows, 2:])
    after[rows] = np.concatenate([low, high], axis=1)  # a turned cell cuts, too: within both
