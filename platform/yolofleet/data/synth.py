"""A COCO-format dataset of drawn shapes, for trying things out and for tests: any size, equal for equal seeds.

The class of an object is its shape alone: colour, texture, size, position and rotation are independent of it, so a
detector has to learn shapes. Backgrounds are textured; some images are empty; objects may overlap; some images hold a
crowd (``iscrowd = 1``), described by an RLE or by its box alone. Category ids have gaps, as COCO's do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.data.order import Purpose, keyed_generator

CATEGORIES = ((2, "disc"), (5, "triangle"), (11, "cross"))
EMPTY_SHARE = 0.08
CROWD_SHARE = 0.08
POLYGON_SHARE = 0.5
MOST_OBJECTS = 3
MOST_HIDDEN_SHARE = 0.3
"""No object hides more than this of another, and none is drawn where it would itself be hidden that much."""
EVERY_NTH_FOR_VALIDATION = 5
JPEG_QUALITY = 90
_SUBPIXEL_BITS = 4
LEAST_CONTRAST = 80.0
"""Smallest distance, in grey levels, between an object's colour and its surroundings."""


def background(height: int, width: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return (height, width, 3) uint8: a gradient between two near colours, soft blotches, stripes, fine noise."""
    first = generator.uniform(30, 225, size=3)
    second = np.clip(first + generator.uniform(-50, 50, size=3), 0, 255)
    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    along = (np.cos(angle) * x + np.sin(angle) * y) / max(height, width)
    share = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    pixels = first + (second - first) * share[:, :, None]
    coarse = generator.normal(0, 1, size=(max(2, height // 24), max(2, width // 24), 3)).astype(np.float32)
    pixels += generator.uniform(3, 14) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    if generator.random() < 0.3:
        pixels += _pattern(height, width, generator)[:, :, None] * generator.uniform(-15, 15, size=3)
    pixels += generator.normal(0, generator.uniform(1, 4), size=(height, width, 1))
    return np.asarray(np.clip(pixels, 0, 255), dtype=np.uint8)


def fill_textured(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], generator: np.random.Generator) -> None:
    """Fill a mask with a random colour that stands out from its surroundings, plain or with a pattern."""
    if not mask.any():
        return
    height, width = mask.shape
    ring = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~mask
    around = pixels[ring if ring.any() else mask].mean(axis=0)
    colour = generator.uniform(0, 255, size=3)
    while np.abs(colour - around).mean() < LEAST_CONTRAST:
        colour = generator.uniform(0, 255, size=3)
    filling = np.broadcast_to(colour, (height, width, 3)).copy()
    if generator.random() < 0.6:
        filling += _pattern(height, width, generator)[:, :, None] * generator.uniform(-30, 30, size=3)
    filling += generator.normal(0, 4, size=(height, width, 1))
    soft = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)[:, :, None]  # softened edges, as a lens draws them
    pixels[:] = np.clip(pixels * (1 - soft) + filling * soft, 0, 255).astype(np.uint8)


def _pattern(height: int, width: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return (height, width) in -1..1: stripes, a chequerboard or dots, at a random angle and pitch."""
    pitch, angle = generator.uniform(5, 16), generator.uniform(0, np.pi)
    y, x = np.mgrid[0:height, 0:width]
    along = (np.cos(angle) * x + np.sin(angle) * y) / pitch * 2 * np.pi
    across = (np.cos(angle) * y - np.sin(angle) * x) / pitch * 2 * np.pi
    kind = int(generator.integers(3))
    if kind == 0:
        return np.asarray(np.sign(np.sin(along)))
    if kind == 1:
        return np.asarray(np.sign(np.sin(along) * np.sin(across)))
    return np.asarray(np.where(np.sin(along) + np.sin(across) > 0.8, 1.0, -1.0))


@dataclass(frozen=True)
class _Shape:
    """A drawn shape: its outline (points, 2) in pixels and the pixels that it covers."""

    outline: NDArray[np.float64]
    mask: NDArray[np.bool_]


def write_synthetic_dataset(
    out: str | Path,
    num_images: int,
    seed: int,
    image_size: int = 192,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Draw a dataset: ``OUT/images/*.jpg``, ``OUT/instances.json`` and its parts ``instances_train`` and ``_val``.

    Every fifth image belongs to the validation part.

    Args:
        out: Folder, made if it is missing.
        num_images: Images in all.
        seed: Equal seeds draw equal datasets; image k does not depend on how many there are.
        image_size: Longer side of the images, in pixels.
        progress: Called for every image drawn.

    Raises:
        UserError: The folder cannot be made.
    """
    folder = Path(out)
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: a dataset cannot be drawn here ({error.strerror}); choose another folder"
        ) from error
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(num_images):
        pixels, objects = draw_image(seed, number, image_size)
        name = f"{number:06d}.jpg"
        data = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB")
        (folder / "images" / name).write_bytes(data)
        height, width = pixels.shape[:2]
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        for entry in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **entry})
        progress(1)
    for part, belongs in (
        ("instances", lambda identity: True),
        ("instances_train", lambda identity: identity % EVERY_NTH_FOR_VALIDATION != 0),
        ("instances_val", lambda identity: identity % EVERY_NTH_FOR_VALIDATION == 0),
    ):
        document = {
            "images": [entry for entry in images if belongs(entry["id"])],
            "annotations": [entry for entry in annotations if belongs(entry["image_id"])],
            "categories": [{"id": identity, "name": name} for identity, name in CATEGORIES],
        }
        (folder / f"{part}.json").write_text(json.dumps(document), encoding="utf-8")


def draw_image(seed: int, number: int, image_size: int) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Draw one image.

    Returns:
        (height, width, 3) uint8 RGB, and its objects as COCO annotations without ids.
    """
    generator = keyed_generator(seed, Purpose.SYNTHESIS, number)
    short = round(image_size * generator.uniform(0.7, 1.0))
    height, width = (short, image_size) if generator.random() < 0.5 else (image_size, short)
    pixels = background(height, width, generator)
    if generator.random() < EMPTY_SHARE:
        return pixels, []
    objects: list[dict[str, Any]] = []
    drawn: list[NDArray[np.bool_]] = []
    if generator.random() < CROWD_SHARE:
        crowd, region = _draw_crowd(pixels, generator)
        objects.append(crowd)
        drawn.append(region)
    for _ in range(int(generator.integers(1, MOST_OBJECTS + 1))):
        category = int(generator.integers(len(CATEGORIES)))
        side = min(height, width) * generator.uniform(0.25, 0.55)
        shape = _add_shape(category, side, height, width, drawn, generator)
        if shape is None:
            continue
        drawn.append(shape.mask)
        fill_textured(pixels, shape.mask, generator)
        objects.append(_annotation(category, shape, with_polygon=bool(generator.random() < POLYGON_SHARE)))
    return pixels, objects


def _outline(category: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return the outline of a shape of size 1 around the origin: disc (ellipse), triangle or cross."""
    if category == 0:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        points = 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif category == 1:
        angles = np.array([-90.0, 30.0, 150.0]) * np.pi / 180
        points = 0.56 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        arm = generator.uniform(0.11, 0.17)
        corner = [(arm, 0.5), (arm, arm), (0.5, arm), (0.5, -arm), (arm, -arm), (arm, -0.5)]
        points = np.array(corner + [(-x, -y) for x, y in corner])
    stretch = np.array([1.0, generator.uniform(0.75, 1.0)])
    angle = generator.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray((points * stretch) @ turn.T)


def _add_shape(
    category: int, side: float, height: int, width: int, drawn: list[NDArray[np.bool_]], generator: np.random.Generator
) -> _Shape | None:
    """Position a shape wholly inside the image so that it hides little of those already drawn; None if nothing fits."""
    unit = _outline(category, generator) * side
    low, high = unit.min(axis=0), unit.max(axis=0)
    for _ in range(8):
        room = np.array([width, height]) - (high - low) - 2
        if (room <= 0).any():
            return None
        outline = unit - low + 1 + generator.uniform(0, 1, size=2) * room
        mask = _fill(outline, height, width)
        if all((mask & other).sum() <= MOST_HIDDEN_SHARE * min(mask.sum(), other.sum()) for other in drawn):
            return _Shape(outline, mask)
    return None


def _fill(outline: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=np.uint8)
    points = np.round((outline - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)  # OpenCV counts from pixel centres
    cv2.fillPoly(mask, [points], 1, shift=_SUBPIXEL_BITS)
    return mask.astype(bool)


def _draw_crowd(pixels: NDArray[np.uint8], generator: np.random.Generator) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Draw many small shapes of one class, annotated together; returns the annotation and the pixels covered."""
    height, width = pixels.shape[:2]
    category = int(generator.integers(len(CATEGORIES)))
    size = np.array([width, height]) * generator.uniform(0.3, 0.5)
    corner = generator.uniform(0, 1, size=2) * (np.array([width, height]) - size)
    region = np.zeros((height, width), dtype=bool)
    for _ in range(12):
        outline = _outline(category, generator) * (min(height, width) * generator.uniform(0.07, 0.1))
        mask = _fill(outline + corner + generator.uniform(0.12, 0.88, size=2) * size, height, width)
        fill_textured(pixels, mask, generator)
        region |= mask
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    entry: dict[str, Any] = {
        "category_id": CATEGORIES[category][0],
        "bbox": [float(value) for value in box],
        "area": float(region.sum()),
        "iscrowd": 1,
    }
    if generator.random() < 0.5:
        entry["segmentation"] = {"size": [height, width], "counts": _run_lengths(region)}
    return entry, region


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed RLE: lengths of runs down the columns, beginning with zeros."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = [int(run) for run in np.diff(edges)]
    return [0, *runs] if flat[0] else runs


def _annotation(category: int, shape: _Shape, *, with_polygon: bool) -> dict[str, Any]:
    outline = np.round(shape.outline, 2)
    low, high = outline.min(axis=0), outline.max(axis=0)
    entry: dict[str, Any] = {
        "category_id": CATEGORIES[category][0],
        "bbox": [round(float(value), 2) for value in (*low, *(high - low))],
        "area": float(shape.mask.sum()),
        "iscrowd": 0,
    }
    if with_polygon:
        entry["segmentation"] = [[float(value) for value in outline.reshape(-1)]]
    return entry
