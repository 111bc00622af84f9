"""The lines of YOLO label files: a box, a polygon (also of an oriented box), or a box with key points.

One line alone does not always say its kind: ``class`` and 8 numbers are the corners of an oriented box, or a box
with two key points. So the lines of a dataset are looked at together, and data.yaml's ``kpt_shape`` is believed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.text import plural
from yolofleet.data.problems import ProblemLog

OVERHANG_SHARE = 0.1
"""An object may reach so far out of its image: its box is clipped, and counted, where the image is known."""
BOX_NUMBERS = 4
LEAST_POLYGON_NUMBERS = 6
MOST_LINES_COMPARED = 2000
KEY_POINTS_SHARE = 0.8
"""Lines that must look like boxes with key points before all of them are read so."""
LEAST_CORNER_SHARE = 0.5


@dataclass(frozen=True)
class LabelLine:
    """A line of numbers: its class, the shares after it, and where it stands."""

    category: int
    shares: list[float]
    where: str


def parse_line(line: str, where: str, problems: ProblemLog) -> LabelLine | None:
    """Return a line that begins with a class and holds numbers; any other is counted, with what it looks like."""
    fields = line.split()
    try:
        values = [float(field) for field in fields]
    except ValueError:
        problems.add("label_line_malformed", where + _look(line, fields))
        return None
    category, shares = values[0], values[1:]
    if not math.isfinite(category) or category != int(category) or len(shares) < BOX_NUMBERS:
        problems.add("label_line_malformed", where + _look(line, fields))
        return None
    return LabelLine(int(category), shares, where)


def sound_lines(
    lines: list[LabelLine], numbers_of_points: int | None, problems: ProblemLog, *, is_sure: bool
) -> list[LabelLine]:
    """Return the lines whose numbers make sense, those with key points as boxes alone.

    Args:
        lines: Of an image.
        numbers_of_points: How many numbers the key points of a line have; None where lines with more numbers than a
            box are polygons.
        problems: Where the other lines are counted.
        is_sure: Whether data.yaml says that labels hold key points, so that there are no polygons.
    """
    sound = []
    for line in lines:
        shares, count = line.shares, len(line.shares)
        if numbers_of_points is not None and count == BOX_NUMBERS + numbers_of_points:
            problems.add("key_points_left_out", line.where)
            shares = shares[:BOX_NUMBERS]
        is_polygon = not is_sure and len(shares) >= LEAST_POLYGON_NUMBERS and len(shares) % 2 == 0
        in_range = all(-OVERHANG_SHARE <= share <= 1 + OVERHANG_SHARE for share in shares)  # false for NaN
        if not (len(shares) == BOX_NUMBERS or is_polygon) or not in_range:
            problems.add("label_line_malformed", line.where + _look_of_numbers(shares))
        elif len(shares) == BOX_NUMBERS and min(shares[2:]) <= 0:
            problems.add("box_zero_area", line.where)
        else:
            sound.append(LabelLine(line.category, shares, line.where))
    return sound


def key_point_numbers(lines: list[LabelLine], url: str, problems: ProblemLog) -> int | None:
    """Return how many numbers the key points of a dataset's lines have; None where longer lines are polygons.

    Lines with key points are all equally long. Each third of their numbers is a flag (0, 1, 2), or their points lie
    in the box that the first four numbers make, spread over it.
    """
    counts = Counter(len(line.shares) for line in lines if len(line.shares) > BOX_NUMBERS + 1)
    if len(counts) != 1:
        return None
    (count,) = counts
    chosen = [line for line in lines if len(line.shares) == count]
    table = np.array([line.shares for line in chosen[:: 1 + len(chosen) // MOST_LINES_COMPARED]])  # (lines, numbers)
    if not np.isfinite(table).all():
        return None
    if (count - BOX_NUMBERS) % 3 == 0:
        is_flagged = np.isin(table[:, BOX_NUMBERS + 2 :: 3], (0, 1, 2)).all(axis=1) & _holds_box(table)
        if is_flagged.mean() >= KEY_POINTS_SHARE:
            return count - BOX_NUMBERS
    if count % 2 or _are_oriented_boxes(table):
        return None
    if count == BOX_NUMBERS + 2 and (table[:, -1] % 1 == 0).all() and _holds_box(table).mean() >= KEY_POINTS_SHARE:
        return 2  # a confidence and a track number, as trackers write them; three corners would be the alternative
    share = float(_looks_like_key_points(table).mean())
    if 1 - KEY_POINTS_SHARE < share < KEY_POINTS_SHARE:
        problems.add("key_points_unclear", f"{url}: {share:.0%} of {plural(len(table), 'line')} of {count} numbers")
    return count - BOX_NUMBERS if share >= KEY_POINTS_SHARE else None


def look_like_corners(lines: list[LabelLine]) -> bool:
    """Return whether boxes make more sense as x1, y1, x2, y2: read as centre and sides many leave the image."""
    table = np.array([line.shares for line in lines if len(line.shares) == BOX_NUMBERS]).reshape(-1, BOX_NUMBERS)
    centres, last = table[:, :2], table[:, 2:]
    leaves = (centres - last / 2 < -0.01).any(axis=1) | (centres + last / 2 > 1.01).any(axis=1)
    suspicious = leaves & (last > centres).all(axis=1)
    return bool(len(table)) and float(suspicious.mean()) >= LEAST_CORNER_SHARE


def _holds_box(table: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (n,) whether the first four numbers are a box inside the image."""
    centres, sides = table[:, :2], table[:, 2:4]
    return np.asarray(
        ((sides > 0) & (centres - sides / 2 > -0.01) & (centres + sides / 2 < 1.01)).all(axis=1), dtype=np.bool_
    )


def _are_oriented_boxes(table: NDArray[np.float64]) -> bool:
    """Return whether lines are parallelograms: opposite corners of each have the same middle."""
    if table.shape[1] != 8:
        return False
    middles = table[:, 0:2] + table[:, 4:6] - table[:, 2:4] - table[:, 6:8]
    return float((np.abs(middles) < 0.004).all(axis=1).mean()) >= KEY_POINTS_SHARE


def _looks_like_key_points(table: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (n,) whether the numbers after the fourth are points of the box before them, rather than all a polygon."""
    centres, sides = table[:, None, 0:2], table[:, None, 2:4]  # (n, 1, 2)
    points = table[:, 4:].reshape(len(table), -1, 2)
    known = (points != 0).any(axis=2)  # 0 0 is a point that nobody marked
    inside = (np.abs(points - centres) <= 0.55 * sides + 1e-3).all(axis=2) | ~known
    # Of a small polygon all points lie near the first two, which then make a box that is far too large for them.
    low = np.where(known[:, :, None], points, np.inf).min(axis=1)
    high = np.where(known[:, :, None], points, -np.inf).max(axis=1)
    is_spread = (high - low >= 0.4 * sides[:, 0]).all(axis=1)
    low, high = np.minimum(low, centres[:, 0]), np.maximum(high, centres[:, 0])
    margin = 0.5 * (high - low) + 0.01
    second_is_near = ((sides[:, 0] >= low - margin) & (sides[:, 0] <= high + margin)).all(axis=1)
    fits = _holds_box(table) & (inside.mean(axis=1) >= 0.9) & known.any(axis=1)
    return np.asarray(fits & (is_spread | ~second_is_near), dtype=np.bool_)


def _look(line: str, fields: list[str]) -> str:
    """Return what a line that cannot be read looks like, for its problem."""
    if any(mark in line for mark in ",;"):
        return " (commas: YOLO separates numbers by blanks)"
    if len(fields) >= 1 + BOX_NUMBERS and all(_is_number(field) for field in fields[1:]):
        return " (a name in place of the class's number: 0, 1, 2, ... in the order of the names)"
    return ""


def _look_of_numbers(shares: list[float]) -> str:
    if len(shares) == BOX_NUMBERS + 1:
        return " (six columns: a confidence at the end, as predictions have; remove that column)"
    if len(shares) == BOX_NUMBERS and max(shares) > 1 + OVERHANG_SHARE:
        corners = " and corners instead of centre and sides" if shares[2] > shares[0] and shares[3] > shares[1] else ""
        return f" (values above 1: pixels instead of shares of the image's sides{corners}?)"
    return ""


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
