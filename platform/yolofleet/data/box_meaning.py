"""Boxes of four numbers that are no x, y, width, height in pixels: shares of the sides, percents, corners, centers.

Shares are refused, for no image could be learned from. Everything else is reported with what fits, and kept: the
numbers alone do not prove it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.data.annotation import THINNEST_BOX_PIXELS, CleanBox
from yolofleet.data.outline_box import Box, box_of_outline, overlap
from yolofleet.data.problems import ProblemLog

LEAST_SHARES = 0.5
"""Share of boxes in the first pixel of their image above which all are taken for shares of its sides."""
LEAST_CORNER_SHARE = 0.5
"""Share of boxes that must leave their image, or contradict their area, before they are said to look like corners."""
LEAST_OVERLAP = 0.5
"""IoU of a box and the one around its outline below which they contradict each other."""
FITTING_OVERLAP = 0.8
MASKS_ALL_SEEN = 2000
MASK_STEP = 20
"""So many RLEs are compared with their boxes, and then one of so many."""
FEWEST_PERCENTS = 10
SHORTEST_SIDE_OF_PERCENTS = 120
"""Boxes that all lie in the first 100 pixels of larger images look like percents, if there are several."""


@dataclass
class BoxMeaning:
    """What the boxes of a COCO file look like, counted while they are read."""

    num_boxes: int = 0
    num_masks: int = 0
    num_of_shares: int = 0
    num_like_percents: int = 0
    num_like_corners: int = 0

    def add(self, clean: CleanBox, size: tuple[int, int]) -> str | None:
        """Count a box in an image of (width, height); return how it contradicts its outline, if it does."""
        self.num_boxes += 1
        self.num_of_shares += is_of_shares(clean.box)
        self.num_like_percents += _looks_like_percents(clean.box, size)
        self.num_like_corners += _looks_like_corners(clean, size)
        return _contradiction(clean.box, self._outline(clean))

    def _outline(self, clean: CleanBox) -> Box | None:
        """Return the box around an outline; of many RLEs only for some, because decoding one takes long."""
        if clean.outline_box is not None or not isinstance(clean.segmentation, dict):
            return clean.outline_box
        self.num_masks += 1
        is_seen = self.num_masks <= MASKS_ALL_SEEN or self.num_masks % MASK_STEP == 0
        return box_of_outline(clean.segmentation) if is_seen else None

    def tell(self, name: str, problems: ProblemLog) -> None:
        """Count what most boxes look like.

        Args:
            name: Name of the file in messages.
            problems: Where it is counted.

        Raises:
            UserError: They are shares of the images' sides.
        """
        refuse_shares(self.num_of_shares, self.num_boxes, name)
        if self.num_like_corners and self.num_like_corners >= LEAST_CORNER_SHARE * self.num_boxes:
            problems.add("boxes_look_like_corners", f"{name}: {self.num_like_corners} of {self._num}")
        if self.num_like_percents == self.num_boxes >= FEWEST_PERCENTS:
            problems.add("boxes_look_like_percents", f"{name}: all {self._num} lie in the first 100 pixels")

    @property
    def _num(self) -> str:
        return plural(self.num_boxes, "box")


def is_of_shares(box: Sequence[float]) -> bool:
    """Return whether x, y, width, height lie in the image's first pixel, as shares of its sides do."""
    x, y, width, height = box
    is_inside = 0 <= x and 0 <= y and max(x + width, y + height) <= 1 + THINNEST_BOX_PIXELS
    return is_inside and any(value % 1 for value in box)


def refuse_shares(num_of_shares: int, num_boxes: int, name: str) -> None:
    """Refuse annotations most of whose boxes are shares of the images' sides.

    Raises:
        UserError: They are.
    """
    if num_of_shares > LEAST_SHARES * num_boxes:
        raise UserError(
            f"{name}: {num_of_shares} of {plural(num_boxes, 'box')} lie in the first pixel of the image, as shares of "
            "its sides do; multiply them by its width and height, because pixels are needed"
        )


def _looks_like_percents(box: Sequence[float], size: tuple[int, int]) -> bool:
    x, y, width, height = box
    is_inside = 0 <= x and 0 <= y and max(x + width, y + height) <= 100 + THINNEST_BOX_PIXELS
    return is_inside and min(size) >= SHORTEST_SIDE_OF_PERCENTS


def _looks_like_corners(clean: CleanBox, size: tuple[int, int]) -> bool:
    """Return whether a box makes more sense as x1, y1, x2, y2: then its area is that of the smaller rectangle."""
    x, y, width, height = clean.box
    if not (width > x >= 0 and height > y >= 0):
        return False
    as_corners = (width - x) * (height - y)
    fits_area = "area_missing" not in clean.repairs and abs(clean.area - as_corners) <= 0.01 * as_corners
    leaves = size[0] > 0 and (x + width > size[0] + 1 or y + height > size[1] + 1)
    return (fits_area and as_corners < width * height) or leaves


def _contradiction(box: Sequence[float], outline: Box | None) -> str | None:
    """Return how a box differs from the one around its outline, and what would fit; None where they agree."""
    if outline is None or outline[2] <= 0 or outline[3] <= 0 or overlap(box, outline) >= LEAST_OVERLAP:
        return None
    x, y, width, height = box
    gains = (outline[2] / width, outline[3] / height)
    readings = {
        "the center, width and height": [x - width / 2, y - height / 2, width, height],
        "the corners x1, y1, x2, y2": [x, y, width - x, height - y],
        f"those of a copy, times {gains[0]:.4g} and {gains[1]:.4g}": [
            side * gain for side, gain in zip(box, gains * 2, strict=True)
        ],
    }
    fits = [name for name, reading in readings.items() if overlap(reading, outline) >= FITTING_OVERLAP]
    seen = f"bbox {[*box]}, around its outline {outline}"
    return f"{seen}; it fits as {fits[0]}" if fits else seen
