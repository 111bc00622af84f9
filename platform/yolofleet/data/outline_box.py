"""The upright box around an outline: polygons, an RLE as COCO writes it, or a rotated box.

Tools leave out a bbox that follows from the outline, or write an empty one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from yolofleet.data.records import Segmentation

Box = list[float]


def box_of_outline(segmentation: Segmentation) -> Box | None:
    """Return x, y, width, height around polygons or an RLE; None where there is no outline, or nothing in it."""
    if isinstance(segmentation, dict):
        return _box_of_rle(segmentation)
    points = np.array([value for polygon in segmentation or [] for value in polygon]).reshape(-1, 2)
    if not len(points):
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def rotated_box(box: Box, degrees: float) -> Box:
    """Return the upright box around a box that is turned about its centre."""
    x, y, width, height = box
    angle = math.radians(degrees)
    across, down = abs(math.cos(angle)), abs(math.sin(angle))
    new_width, new_height = width * across + height * down, width * down + height * across
    return [x + (width - new_width) / 2, y + (height - new_height) / 2, new_width, new_height]


def _box_of_rle(rle: dict[str, Any]) -> Box | None:
    height, width = rle["size"]
    counts = rle["counts"] if isinstance(rle["counts"], list) else _decoded(rle["counts"])
    ends = np.cumsum(np.array(counts, dtype=np.float64))  # runs down the columns, the first of zeros
    if len(ends) < 2 or min(counts) < 0 or ends[-1] > height * width:
        return None
    starts, ends = ends[0:-1:2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return None
    left, right = starts[0] // height, (ends[-1] - 1) // height + 1
    crosses = starts // height != (ends - 1) // height  # a run that reaches into the next column touches both edges
    top = 0.0 if crosses.any() else float((starts % height).min())
    bottom = float(height) if crosses.any() else float(((ends - 1) % height).max()) + 1
    return [float(left), top, float(right - left), bottom - top]


def _decoded(text: str) -> list[int]:
    """Return the runs of a compressed RLE: five bits a character, from the third on differences to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift > 60:  # no run is that long
                return []
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
