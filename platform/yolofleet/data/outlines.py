"""Polygons of a picture's objects, and the box around what is seen of each through a window.

A box that is cut by the edge of a mosaic's cell or of the output is too large: the object's part inside may be smaller.
Where the source has polygons, the box of a cut object is that of the polygon's part inside the window, computed exactly
from its edges. (The published augmentation samples 1000 points of the outline and keeps those inside, which comes to
the same, except where the window lies within the object: there it finds nothing, and this finds the window.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.geometry import Matrix, move_points
from yolofleet.data.records import Segmentation

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Outlines:
    """The edges of all polygons of a picture.

    Attributes:
        starts: (e, 2) first points of the edges, in pixels.
        ends: (e, 2) last points of the edges.
        owners: (e,) number of the object that an edge belongs to, rising.
        has_polygon: (n,) for each object whether it has any edges.
    """

    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    owners: NDArray[np.int64]
    has_polygon: NDArray[np.bool_]

    @staticmethod
    def of(segmentations: list[Segmentation]) -> Outlines:
        """Collect the edges of every object's polygons; an RLE or nothing at all gives none."""
        starts, ends, owners = [np.empty((0, 2))], [np.empty((0, 2))], [np.empty(0, dtype=np.int64)]
        for number, segmentation in enumerate(segmentations):
            for polygon in segmentation if isinstance(segmentation, list) else ():
                points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
                starts.append(points)
                ends.append(np.roll(points, -1, axis=0))
                owners.append(np.full(len(points), number, dtype=np.int64))
        all_owners = np.concatenate(owners)
        has_polygon = np.bincount(all_owners, minlength=len(segmentations)) > 0
        return Outlines(np.concatenate(starts), np.concatenate(ends), all_owners, has_polygon)

    def seen_boxes(self, objects: NDArray[np.int64], matrix: Matrix, window: Rectangle) -> NDArray[np.float64]:
        """Return the boxes around what is seen of some objects.

        Args:
            objects: (k,) objects that have polygons, rising.
            matrix: 3x3, from picture pixels to output pixels.
            window: x1, y1, x2, y2 in the output.

        Returns:
            (k, 4) x1, y1, x2, y2 in output pixels; all zero where nothing is seen.
        """
        if not len(objects):
            return np.zeros((0, 4))
        wanted = np.isin(self.owners, objects)
        first, last = move_points(self.starts[wanted], matrix), move_points(self.ends[wanted], matrix)
        owners = self.owners[wanted]
        groups = np.flatnonzero(np.diff(owners, prepend=-1))  # where each object's edges begin
        inside, enters, leaves = _clipped(first, last, window)
        low = np.where(inside[:, None], np.minimum(enters, leaves), np.inf)
        high = np.where(inside[:, None], np.maximum(enters, leaves), -np.inf)
        corners = np.array([(x, y) for x in window[0::2] for y in window[1::2]])  # (4, 2)
        holds = np.logical_xor.reduceat(_crossings(first, last, corners), groups, axis=1)  # (4, k) corner in object
        low_corner = np.where(holds[:, :, None], corners[:, None, :], np.inf).min(axis=0)  # (k, 2)
        high_corner = np.where(holds[:, :, None], corners[:, None, :], -np.inf).max(axis=0)
        low = np.minimum(np.minimum.reduceat(low, groups), low_corner)
        high = np.maximum(np.maximum.reduceat(high, groups), high_corner)
        boxes = np.concatenate([low, high], axis=1)
        return np.where(np.isfinite(boxes).all(axis=1)[:, None], boxes, 0.0)


def _clipped(
    first: NDArray[np.float64], last: NDArray[np.float64], window: Rectangle
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Clip edges to a window (Liang and Barsky, 1984).

    Returns:
        (e,) whether any of the edge lies inside, and (e, 2) each, the ends of the part inside.
    """
    along = last - first
    low, high = np.array(window[:2]), np.array(window[2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        at_low, at_high = (low - first) / along, (high - first) / along  # (e, 2); infinite for parallel edges
    enter, leave = np.fmin(at_low, at_high), np.fmax(at_low, at_high)
    parallel = along == 0
    outside = (parallel & ((first < low) | (first > high))).any(axis=1)
    enter, leave = np.where(parallel, 0.0, enter).max(axis=1), np.where(parallel, 1.0, leave).min(axis=1)
    enter, leave = np.maximum(enter, 0.0), np.minimum(leave, 1.0)
    inside = ~outside & (enter <= leave)
    return inside, first + enter[:, None] * along, first + leave[:, None] * along


def _crossings(first: NDArray[np.float64], last: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (p, e): whether the ray from a point to the right crosses an edge. An odd number means inside."""
    x, y = points[:, 0:1], points[:, 1:2]
    spans = (first[:, 1] > y) != (last[:, 1] > y)
    rise = np.where(first[:, 1] == last[:, 1], 1.0, last[:, 1] - first[:, 1])
    crossing = first[:, 0] + (y - first[:, 1]) / rise * (last[:, 0] - first[:, 0])
    return np.asarray(spans & (x < crossing))
