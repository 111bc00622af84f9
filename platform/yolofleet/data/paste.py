"""Pasting cut-out objects into a sample (published as "paste-in"): small objects where the image has room for them.

Objects with polygons are cut out of the images of the micro-batch, scaled into a randomly drawn rectangle, and pasted
where they hide little of what is there. Sizes run from three quarters of the input down to a sixteenth.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from yolofleet.data.records import LabelledImage
from yolofleet.data.targets import Targets, joined

SIZE_SHARES = (0.75,) * 2 + (0.5,) * 4 + (0.25,) * 4 + (0.125,) * 4 + (0.0625,) * 6
SKIPPED_SHARE = 0.2
MOST_HIDDEN_SHARE = 0.3
LEAST_ROOM_PIXELS = 20
LEAST_SIDE_PIXELS = 10
LEAST_MASK_PIXELS = 20


def paste_objects(
    image: NDArray[np.uint8], targets: Targets, labelled_images: list[LabelledImage], generator: np.random.Generator
) -> Targets:
    """Paste objects of the micro-batch into an image, in place.

    Args:
        image: (side, side, 3) uint8.
        targets: What is in the image.
        labelled_images: Images of the micro-batch; only their objects with polygons are used.
        generator: The sample's random numbers.

    Returns:
        The targets, with those of the pasted objects.
    """
    sources = [
        (number, int(place))
        for number, labelled in enumerate(labelled_images)
        for place in np.flatnonzero(labelled.outlines.has_polygon)
    ]
    if not sources:
        return targets
    side = image.shape[0]
    for share in SIZE_SHARES:
        if generator.random() < SKIPPED_SHARE:
            continue
        most = max(LEAST_ROOM_PIXELS, round(side * share))
        width, height = (int(value) for value in generator.integers(LEAST_ROOM_PIXELS, most + 1, size=2))
        left = int(generator.integers(0, max(1, side - width + 1)))
        top = int(generator.integers(0, max(1, side - height + 1)))
        number, place = sources[int(generator.integers(len(sources)))]
        room = np.array([left, top, min(left + width, side), min(top + height, side)], dtype=np.float64)
        if _largest_hidden_share(room, targets.boxes) >= MOST_HIDDEN_SHARE:
            continue
        box = _pasted(image, labelled_images[number], place, room)
        if box is not None:
            added = Targets(box[None], labelled_images[number].classes[place : place + 1])
            targets = joined([targets, added])
    return targets


def _largest_hidden_share(room: NDArray[np.float64], boxes: NDArray[np.float64]) -> float:
    """Return the largest share of any box that the room covers."""
    if not len(boxes):
        return 0.0
    low, high = np.maximum(room[:2], boxes[:, :2]), np.minimum(room[2:], boxes[:, 2:])
    covered = np.maximum(high - low, 0.0).prod(axis=1)
    return float((covered / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)).max())


def _pasted(
    image: NDArray[np.uint8], labelled: LabelledImage, place: int, room: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Paste an object at the top left of its room, as large as fits; returns its box, or None if too little is left."""
    x1, y1, x2, y2 = (
        int(value) for value in (*np.floor(labelled.boxes[place, :2]), *np.ceil(labelled.boxes[place, 2:]))
    )
    left, top, right, bottom = (int(value) for value in room)
    gain = min((right - left) / (x2 - x1), (bottom - top) / (y2 - y1))
    width, height = max(1, round((x2 - x1) * gain)), max(1, round((y2 - y1) * gain))
    width, height = min(width, right - left), min(height, bottom - top)
    if min(width, height) <= LEAST_SIDE_PIXELS:
        return None
    mask = np.zeros((height, width), dtype=np.uint8)
    gains = (width / (x2 - x1), height / (y2 - y1))
    polygons = [np.round((points - (x1, y1)) * gains - 0.5).astype(np.int32) for points in _polygons(labelled, place)]
    cv2.fillPoly(mask, polygons, 1)
    inside = mask.astype(bool)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if inside.sum() <= LEAST_MASK_PIXELS or min(np.ptp(rows), np.ptp(columns)) + 1 <= LEAST_SIDE_PIXELS:
        return None
    cut = cv2.resize(labelled.pixels[y1:y2, x1:x2], (width, height))
    image[top : top + height, left : left + width][inside] = cut[inside]
    return np.array([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1], dtype=np.float64)


def _polygons(labelled: LabelledImage, place: int) -> list[NDArray[np.float64]]:
    """Return the polygons of an object, each (points, 2): edges that follow each other belong together."""
    outlines = labelled.outlines
    own = outlines.owners == place
    starts, ends = outlines.ends[own, 0], outlines.ends[own, 1]
    breaks = np.flatnonzero((starts[1:] != ends[:-1]).any(axis=1)) + 1
    return np.split(starts, breaks)
