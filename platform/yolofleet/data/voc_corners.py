"""The boxes of VOC annotations, and what their numbers count: pixels from 1 as VOC does, or edges from 0.

Nothing in a file says which it is, so all files of a dataset decide together. A 0 is no pixel of VOC, and boxes at the
border begin at 1 there: a converter that adds 1 to numbers between whole ones has no 0 and several 1. Other numbers
between whole ones are edges. Where that tells nothing, whole numbers are VOC's pixels; numbers written as ``58.0`` are
of tools that write edges, which is reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from yolofleet.data.outline_box import Box, rotated_box

LEAST_DECIMALS = 0.1
"""Share of boxes with a corner between whole numbers from which on all are edges; VOC's own files hold a few."""
LEAST_BORDERS = 0.02
FEWEST_BORDERS = 3
"""Share and number of boxes that begin at exactly 1 from which on numbers between whole ones are pixels all the same:
at least as many boxes of a dataset lie at the border, and few edges are exactly 1 by chance."""
LEAST_ONES = 0.1
"""Share of boxes that begin at ``1.0`` from which on numbers with a point are pixels; some edges do by chance."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
ROTATED = ("cx", "cy", "w", "h")


@dataclass(frozen=True)
class Corners:
    """The corners of a box as they are written."""

    values: tuple[float, float, float, float]
    """x1, y1, x2, y2."""
    has_point: bool = False
    """Whether one is written with a decimal point."""
    is_upright: bool = True
    """False where they are the edges around a rotated box."""

    @property
    def has_decimals(self) -> bool:
        """Whether one lies between whole numbers."""
        return self.is_upright and any(math.isfinite(value) and value % 1 for value in self.values)

    def begins_at(self, number: int) -> bool:
        """Return whether the left or the upper corner has this number."""
        return self.is_upright and number in self.values[:2]

    def box(self, first: int) -> Box:
        """Return x, y, width, height in pixels; ``first`` is what the first pixel is called, 0 for edges."""
        first = first if self.is_upright else 0
        x1, y1, x2, y2 = self.values
        return [x1 - first, y1 - first, x2 - x1 + first, y2 - y1 + first]


def read_corners(entry: ElementTree.Element) -> Corners:
    """Return the corners of an object: of its ``bndbox``, or around the ``robndbox`` of roLabelImg, in radians.

    Raises:
        ValueError: It has neither, or not in numbers.
    """
    if entry.find("bndbox") is None and entry.find("robndbox") is not None:
        cx, cy, width, height = (float(entry.findtext(f"robndbox/{name}") or "") for name in ROTATED)
        if not (width > 0 and height > 0):
            raise ValueError(f"a rotated box of {width} x {height}")
        angle = float(entry.findtext("robndbox/angle") or "0")
        x, y, width, height = rotated_box([cx - width / 2, cy - height / 2, width, height], math.degrees(angle))
        return Corners((x, y, x + width, y + height), is_upright=False)
    texts = [entry.findtext(f"bndbox/{side}") or "" for side in SIDES]
    x1, y1, x2, y2 = map(float, texts)
    return Corners((x1, y1, x2, y2), has_point=any("." in text for text in texts))


def first_pixel(every: Sequence[Corners]) -> tuple[int, bool]:
    """Return what the first pixel of an image is called, 1 or 0 (then corners are edges), and whether that is clear."""
    upright = [corners for corners in every if corners.is_upright]
    num_decimals = sum(corners.has_decimals for corners in upright)
    num_zeros, num_ones = (sum(corners.begins_at(number) for corners in upright) for number in (0, 1))
    if num_zeros > num_ones:
        return 0, True
    if num_decimals and num_decimals >= LEAST_DECIMALS * len(upright):
        are_at_border = num_ones > num_zeros and num_ones >= max(FEWEST_BORDERS, LEAST_BORDERS * len(upright))
        return int(are_at_border), True
    if num_ones < LEAST_ONES * len(upright) and 2 * sum(corners.has_point for corners in upright) > len(upright):
        return 0, False
    return 1, True
