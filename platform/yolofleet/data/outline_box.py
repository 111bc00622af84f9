"""Outlines of objects, polygons or an RLE as COCO writes it: which can be relied on, and the upright box around one.

Tools leave out a bbox that follows from the outline, or write one that is no box. Of several polygons the sound ones
are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from yolofleet.data.json_values import are_numbers, is_whole
from yolofleet.data.records import Segmentation

LARGEST_COORDINATE = 1e6
DEEPEST_POINTS = 3
"""Lists around the points of one polygon: ``[x, y, ...]``, ``[[x, y], ...]``, or OpenCV's ``[[[x, y]], ...]``."""
Box = list[float]


def clean_segmentation(segmentation: Any) -> tuple[Segmentation, bool]:
    """Return polygons or RLE that can be relied on (None where there are none), and whether nothing was wrong."""
    if isinstance(segmentation, dict):
        if not _is_sound_rle(segmentation):
            return None, False
        return {"size": segmentation["size"], "counts": segmentation["counts"]}, True
    if segmentation is None or segmentation in ([], [[]]):
        return None, True
    if not isinstance(segmentation, list):
        return None, False
    polygons = _flat_polygons(segmentation)
    sound = [[float(value) for value in polygon] for polygon in polygons if _is_sound_polygon(polygon)]
    return sound or None, len(sound) == len(polygons)


def is_sound_segmentation(segmentation: Any) -> bool:
    """Return whether this is nothing, a list of polygons or an RLE."""
    if isinstance(segmentation, dict):
        return _is_sound_rle(segmentation)
    return segmentation is None or (isinstance(segmentation, list) and all(map(_is_sound_polygon, segmentation)))


def _flat_polygons(segmentation: list[Any]) -> list[list[Any]]:
    """Return polygons as flat lists; tools write points as pairs, or one polygon without a list around it."""
    if not any(isinstance(entry, list) for entry in segmentation):
        return [segmentation]
    polygons = [_flat(entry, DEEPEST_POINTS) for entry in segmentation]
    are_points = len(polygons) > 2 and all(len(polygon) == 2 for polygon in polygons)
    return [[*chain.from_iterable(polygons)]] if are_points else polygons


def _flat(value: Any, most_lists: int) -> list[Any]:
    if not isinstance(value, list) or not most_lists:
        return [value]
    if not any(isinstance(entry, list) for entry in value):
        return value
    return [number for entry in value for number in _flat(entry, most_lists - 1)]


def _is_sound_polygon(polygon: Any) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and are_numbers(polygon, -LARGEST_COORDINATE, LARGEST_COORDINATE)
    )


def _is_sound_rle(rle: dict[str, Any]) -> bool:
    """Check the form of an RLE, and of uncompressed counts that they fill the image exactly."""
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(is_whole(side) and side > 0 for side in size)):
        return False
    if isinstance(counts, list):
        return all(isinstance(run, int) and run >= 0 for run in counts) and sum(counts) == size[0] * size[1]
    return isinstance(counts, str) and counts != "" and all(48 <= ord(character) < 112 for character in counts)


def box_of_outline(segmentation: Segmentation) -> Box | None:
    """Return x, y, width, height around polygons or an RLE; None where there is no outline, or nothing in it."""
    if isinstance(segmentation, dict):
        return _box_of_rle(segmentation)
    if not segmentation:
        return None
    columns = ([*chain.from_iterable(polygon[axis::2] for polygon in segmentation)] for axis in (0, 1))
    (left, right), (top, bottom) = ((min(column), max(column)) for column in columns)
    return [left, top, right - left, bottom - top]


def scaled_box(box: Sequence[float], size: tuple[int, int], new_size: tuple[int, int]) -> Box | None:
    """Return a box of an image of one (width, height) in a copy of another; None where their shapes differ.

    The sides of a copy are rounded.
    """
    gain_x, gain_y = (new / old for new, old in zip(new_size, size, strict=True))
    gain = max(new_size) / max(size)
    if any(abs(old * gain - new) > max(1.0, gain) for new, old in zip(new_size, size, strict=True)):
        return None
    return [side * by for side, by in zip(box, (gain_x, gain_y, gain_x, gain_y), strict=True)]


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over the union of two boxes x, y, width, height."""
    across, down = (
        max(0.0, min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis]))
        for axis in (0, 1)
    )
    union = one[2] * one[3] + other[2] * other[3] - across * down
    return across * down / union if union > 0 else 0.0


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
