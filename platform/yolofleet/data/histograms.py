"""Class balance and histograms of a dataset: boxes by class, size and shape, images by size and number of boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.records import ImageRecord, ObjectClass

OBJECTS_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128)
SIDE_EDGES = (0, 8, 16, 32, 64, 96, 128, 256, 512, 1024)
SHARE_EDGES = (0, 1, 2, 4, 8, 16, 32, 64)
RATIO_EDGES = (0, 1 / 20, 1 / 8, 1 / 4, 1 / 2, 1 / 1.25, 1.25, 2, 4, 8, 20)
RATIO_NAMES = ("1:20", "1:8", "1:4", "1:2", "1:1.25", "square", "1.25:1", "2:1", "4:1", "8:1", "20:1")
LONG_SIDE_EDGES = (0, 160, 320, 640, 960, 1280, 1920, 2560, 3840, 5120)
BORDER_EDGES = (0, 1, 2, 3, 4)
BORDER_PIXELS = 1.0
IMAGES_AT_ONCE = 4096


@dataclass(frozen=True)
class Columns:
    """The boxes of some images that are targets (no crowds), in columns."""

    first: int
    """Number of the first of the images."""
    sizes: NDArray[np.float64]
    """(images, 2) width and height."""
    owners: NDArray[np.int64]
    """(n,) position of each box's image among these."""
    labels: NDArray[np.int64]
    """(n,) position of each box among the boxes of its record."""
    boxes: NDArray[np.float64]
    """(n, 4) x, y, width, height."""
    classes: NDArray[np.int64]
    """(n,) class indices."""

    def touched_borders(self) -> NDArray[np.bool_]:
        """Return (n, 4) whether a box comes within a pixel of the left, top, right and bottom border of its image."""
        low, high = self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]
        far = high >= self.sizes[self.owners] - BORDER_PIXELS
        return np.concatenate([low <= BORDER_PIXELS, far], axis=1)


def columns(records: Sequence[ImageRecord]) -> Iterator[Columns]:
    """Yield the boxes of the images, some thousand images at a time."""
    for first in range(0, len(records), IMAGES_AT_ONCE):
        part = records[first : first + IMAGES_AT_ONCE]
        counts = [len(record.boxes) for record in part]
        targets = ~np.concatenate([record.iscrowd for record in part])
        yield Columns(
            first,
            np.array([(record.width, record.height) for record in part], dtype=np.float64),
            np.repeat(np.arange(len(part)), counts)[targets],
            np.concatenate([np.arange(count) for count in counts])[targets],
            np.concatenate([record.boxes for record in part])[targets],
            np.concatenate([record.classes for record in part])[targets],
        )


@dataclass(frozen=True)
class Histograms:
    """What a dataset holds, counted. A bin is named by its lower edge."""

    class_boxes: dict[str, int]
    """Boxes of each class, "ID NAME"."""
    class_images: dict[str, int]
    """Images that show each class."""
    bins: dict[str, dict[str, int]]
    """Title -> bin -> count."""

    def as_document(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"class_boxes": self.class_boxes, "class_images": self.class_images, **self.bins}


def count_content(records: Sequence[ImageRecord], classes: Sequence[ObjectClass]) -> Histograms:
    """Count the boxes and images of a dataset."""
    num_boxes, num_images = np.zeros(len(classes), dtype=np.int64), np.zeros(len(classes), dtype=np.int64)
    edges = {
        "images by number of boxes": OBJECTS_EDGES,
        "images by long side in pixels": LONG_SIDE_EDGES,
        "boxes by side in pixels": SIDE_EDGES,
        "boxes by side in percent of the image's": SHARE_EDGES,
        "boxes by width to height": RATIO_EDGES,
        "boxes by number of image borders that they touch": BORDER_EDGES,
    }
    counts = {title: np.zeros(len(entry), dtype=np.int64) for title, entry in edges.items()}
    for part in columns(records):
        num_boxes += np.bincount(part.classes, minlength=len(classes))
        shown = np.unique(np.stack([part.owners, part.classes]), axis=1)[1]
        num_images += np.bincount(shown, minlength=len(classes))
        sides = np.sqrt(part.boxes[:, 2] * part.boxes[:, 3])
        image_sides = np.sqrt(part.sizes.prod(axis=1))
        values = (
            np.bincount(part.owners, minlength=len(part.sizes)),
            part.sizes.max(axis=1, initial=0),
            sides,
            100 * sides / image_sides[part.owners],
            part.boxes[:, 2] / part.boxes[:, 3],
            part.touched_borders().sum(axis=1),
        )
        for (title, entry), column in zip(edges.items(), values, strict=True):
            slots = np.searchsorted(entry, column, side="right") - 1
            counts[title] += np.bincount(slots, minlength=len(entry))
    names = [f"{entry.id} {entry.name}" for entry in classes]
    return Histograms(
        dict(zip(names, num_boxes.tolist(), strict=True)),
        dict(zip(names, num_images.tolist(), strict=True)),
        {
            title: dict(
                zip(RATIO_NAMES if entry is RATIO_EDGES else map(str, entry), counts[title].tolist(), strict=True)
            )
            for title, entry in edges.items()
        },
    )
