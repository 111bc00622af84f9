"""Images with boxes and legible labels, at any size of image.

Line width, text and padding follow the image's size. A label sits on top of its box, inside it or below it where
there is no room above, and always wholly inside the image. It covers no other label: where there is no room beside its
box it stands further off, joined by a line. Where there is none at all, or labels cover much of the image already, it
is left out, those of the least sure boxes first.
Colours are far apart in hue and alternate in lightness; a class keeps its colour in every image. The typeface is
OpenCV's own: it has the letters of most scripts and needs no file. (Pillow's own has ASCII alone.)
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from yolofleet.core.text import share_text
from yolofleet.data.augment import finished

if TYPE_CHECKING:
    from yolofleet.data.micro_batch import MicroBatch

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

GOLDEN_RATIO = 0.618033988749895
SMALLEST_LONG_SIDE = 480  # smaller images are enlarged: a label of legible size would cover them
SMALLEST_WIDTH, SMALLEST_HEIGHT = 200, 40  # thinner images get a dark margin: no label would fit into them
MARGIN = (24, 26, 30)
OUTCOMES: dict[str, tuple[Colour, int]] = {
    "true": ((0, 190, 120), 0),
    "false": ((255, 84, 20), 3),
    "not found": ((90, 180, 255), 1),
}
"""Boxes of an evaluation: colours that colour-blind people tell apart, and dashes in line widths (0: a solid line)."""
SMALL_BOX = 4
"""A box is small, and no label shall cover it, if its longer side is below so many times the size of the text."""
MOST_COVERED = 0.2
"""Share of an image that its labels cover together; the first is written in any case."""
MOST_RINGS = 3
"""How many of its own heights a label may stand off its box."""
TEXT_WEIGHT = 650  # OpenCV's scale: 400 is regular, 800 as heavy as it gets
JPEG_QUALITY = 92
LONGEST_JPEG_SIDE = 65_500
"""In pixels; libjpeg writes no longer one."""


def class_colour(category_id: int) -> Colour:
    """A colour for a class: equal ids get equal colours, and neighbouring ids lie far apart."""
    hue = (0.02 + category_id * GOLDEN_RATIO) % 1.0
    lightness, saturation = ((0.50, 0.95), (0.62, 0.85), (0.40, 0.90))[category_id % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    image: NDArray[np.uint8],
    records: Sequence[Mapping[str, Any]],
    *,
    names: Mapping[int, str] | None = None,
    side: int | None = None,
) -> Image.Image:
    """Draws detections or ground truth on an image.

    Args:
        image: (H, W, 3) uint8 RGB; it is left as it is.
        records: each with category_id, bbox x, y, width, height in pixels and, where there is one, score; the name is
            category_name or the one in `names`. A true `iscrowd` makes a dashed box; an `outcome` of `OUTCOMES` has a
            colour and a line of its own; a `label` is written instead of name and score, an empty one not at all.
        names: category id -> name.
        side: the longest side of the drawing in pixels, at which its labels are legible; None: that of the image.

    Returns:
        The drawing, without `side` enlarged by a whole factor if it is small; with a dark margin if it is very thin.
    """
    longest = max(image.shape[:2])
    factor = max(1, -(-SMALLEST_LONG_SIDE // longest)) if side is None else side / longest
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    drawing = Image.new("RGB", (max(width, SMALLEST_WIDTH), max(height, SMALLEST_HEIGHT)), MARGIN)
    drawing.paste(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0))
    canvas = ImageDraw.Draw(drawing)
    line = max(3, round(max(height, width) / 260))
    text_size = max(13, round(min(max(drawing.size) / 48, min(drawing.size) / 12)))
    ordered = sorted(records, key=lambda record: float(record.get("score", 1.0)))  # the surest on top
    boxes = [_corners(record, factor, width, height) for record in ordered]
    for record, corners in zip(ordered, boxes, strict=True):
        _draw_box(canvas, corners, line, record)
    small = [box for box in boxes if max(box[2] - box[0], box[3] - box[1]) < SMALL_BOX * text_size]
    labels: list[Rectangle] = []
    for record, corners in zip(reversed(ordered), reversed(boxes), strict=True):
        text, covered = _label(record, names or {}), sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in labels)
        if not text or covered > MOST_COVERED * drawing.width * drawing.height:
            continue
        label = _draw_label(canvas, corners, text, record, text_size, line, labels, small)
        labels += [] if label is None else [label]
    return drawing


def encode(drawing: Image.Image, extension: str = "jpg") -> bytes:
    """Returns the bytes of a JPEG (`jpg`) or PNG (`png`) file."""
    buffer = BytesIO()
    if extension == "png":
        drawing.save(buffer, "PNG")
    else:
        drawing.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # full colour resolution: thin red lines
    return buffer.getvalue()


def contact_sheet(drawings: Sequence[Image.Image], *, columns: int = 4, cell: int = 420) -> Image.Image:
    """Puts images side by side on one sheet, each scaled into a square of `cell` pixels."""
    rows = max(1, -(-len(drawings) // columns))
    gap = 8
    width, height = columns * (cell + gap) + gap, rows * (cell + gap) + gap
    sheet = Image.new("RGB", (width, height), MARGIN)
    for slot, drawing in enumerate(drawings):
        scale = cell / max(drawing.size)
        size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
        small = drawing.resize(size, Image.Resampling.LANCZOS)
        left = gap + (slot % columns) * (cell + gap) + (cell - small.width) // 2
        top = gap + (slot // columns) * (cell + gap) + (cell - small.height) // 2
        sheet.paste(small, (left, top))
    return sheet


def draw_micro_batch(batch: MicroBatch, names: Sequence[str]) -> bytes:
    """Return a PNG with every image of a micro-batch, its targets drawn and named by class index."""
    images = finished(batch.images / 255, batch.finish).mul_(255).round_().byte()
    height, width = images.shape[2:]
    targets = batch.targets.numpy()
    drawings = []
    for slot, planes in enumerate(images.numpy()):
        own = targets[targets[:, 0] == slot]
        sides = own[:, 4:] * (width, height)
        corners = own[:, 2:4] * (width, height) - sides / 2
        boxes = np.concatenate([corners, sides], axis=1).tolist()
        records = [{"category_id": int(index), "bbox": box} for index, box in zip(own[:, 1], boxes, strict=True)]
        drawings.append(draw_detections(planes.transpose(1, 2, 0), records, names=dict(enumerate(names))))
    columns, cell = math.ceil(math.sqrt(len(drawings))), max(drawings[0].size)
    return encode(contact_sheet(drawings, columns=columns, cell=cell), "png")


def _corners(record: Mapping[str, Any], factor: float, width: int, height: int) -> Rectangle:
    """The box in the enlarged image, clipped to it: x1, y1, x2, y2."""
    x, y, box_width, box_height = (float(value) * factor for value in record["bbox"])
    left, right = sorted((min(max(x, 0), width - 1), min(max(x + box_width, 0), width - 1)))
    top, bottom = sorted((min(max(y, 0), height - 1), min(max(y + box_height, 0), height - 1)))
    return left, top, right, bottom


def _draw_box(canvas: ImageDraw.ImageDraw, corners: Rectangle, line: int, record: Mapping[str, Any]) -> None:
    """A box in its colour inside a thin dark one, so that it is seen on any background."""
    left, top, right, bottom = corners
    colour, dash = _style(record)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=1)
    if dash:
        _draw_dashed(canvas, corners, line, colour, dash * line)
        return
    canvas.rectangle(corners, outline=colour, width=line)


def _style(record: Mapping[str, Any]) -> tuple[Colour, int]:
    """The colour of a box, and the length of its dashes in line widths."""
    if "outcome" in record:
        return OUTCOMES[record["outcome"]]
    return class_colour(int(record["category_id"])), 5 if record.get("iscrowd") else 0


def _draw_dashed(canvas: ImageDraw.ImageDraw, corners: Rectangle, line: int, colour: Colour, dash: int) -> None:
    left, top, right, bottom = corners
    for start in np.arange(left, right, 2 * dash):
        for y in (top, bottom):
            canvas.line((start, y, min(start + dash, right), y), fill=colour, width=line)
    for start in np.arange(top, bottom, 2 * dash):
        for x in (left, right):
            canvas.line((x, start, x, min(start + dash, bottom)), fill=colour, width=line)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    corners: Rectangle,
    text: str,
    record: Mapping[str, Any],
    text_size: int,
    line: int,
    labels: Sequence[Rectangle],
    small: Sequence[Rectangle],
) -> Rectangle | None:
    """Draws a label where there is room for it and returns its rectangle; None where there is none."""
    colour, _ = _style(record)
    padding = max(2, line)
    text = _shortened(text, text_size, canvas.im.size[0] - 2 * padding - 1)
    mask = text_mask(text, text_size)
    width, height = mask.width + 2 * padding, mask.height + 2 * padding
    position = _label_position(corners, (width, height), canvas.im.size, labels, small)
    if position is None:
        return None
    left, top = position
    if not _cover((left - 1, top - 1, left + width + 1, top + height + 1), corners):
        start = (min(max(left, corners[0]), corners[2]), min(max(top, corners[1]), corners[3]))
        end = (min(max(corners[0], left), left + width), min(max(corners[1], top), top + height))
        canvas.line((*start, *end), fill=colour, width=max(1, line // 2))
    canvas.rectangle((left, top, left + width, top + height), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    fill = (0, 0, 0) if luminance > 130 else (255, 255, 255)
    canvas.bitmap((round(left) + padding, round(top) + padding), mask, fill=fill)
    return left, top, left + width, top + height


def _label_position(
    corners: Rectangle,
    size: tuple[float, float],
    drawing: tuple[int, int],
    labels: Sequence[Rectangle],
    small: Sequence[Rectangle],
) -> tuple[float, float] | None:
    """Top left corner of a label: above its box, inside, below, then further off.

    It is the first that covers no label and no small box; where there is none, the first that covers no label.
    """
    left, top, right, bottom = corners
    width, height = size
    wishes = [(left, top - height), (left, top), (right - width, top - height), (right - width, top)]
    wishes += [(left, bottom), (left, bottom - height), (right - width, bottom - height)]
    for ring in range(1, MOST_RINGS + 1):
        for x in (left, left - ring * width / 2, left + ring * width / 2):
            wishes += [(x, top - (ring + 1) * height), (x, bottom + ring * height), (x, top + ring * height)]
    inside = [
        (max(0.0, min(x, drawing[0] - 1 - width)), max(0.0, min(y, drawing[1] - 1 - height)))
        for number, (x, y) in enumerate(wishes)
        if number == 0 or -0.5 <= y <= drawing[1] - height
    ]
    for obstacles in ((*labels, *small), labels):
        for x, y in inside:
            if not any(_cover((x, y, x + width, y + height), other) for other in obstacles):
                return x, y
    return None


def _shortened(text: str, text_size: int, room: float) -> str:
    """The text, with its middle left out if it is wider than the image."""
    kept = len(text)
    while kept > 8 and _text_box(text, text_size)[2] > room:
        kept -= 2
        text = text[: kept // 2 - 3] + "…" + text[-5:]
    return text


def _cover(first: Rectangle, second: Rectangle) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _label(record: Mapping[str, Any], names: Mapping[int, str]) -> str:
    if "label" in record:
        return str(record["label"])
    category_id = int(record["category_id"])
    name = str(record.get("category_name") or names.get(category_id, category_id))
    if record.get("iscrowd"):
        name += " (crowd)"
    return f"{name} {score_text(record['score'])}" if "score" in record else name


def score_text(score: float) -> str:
    """Return a confidence as people read it: two decimals, more where they would say 0 or 1."""
    return share_text(float(score), decimals=2, kind="f")


@lru_cache(maxsize=1)
def _typeface() -> Any:
    return cv2.FontFace("sans")


def _text_box(text: str, text_size: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a line of text that begins at (0, 0) on its base line."""
    left, top, width, height = cv2.getTextSize((0, 0), text, (0, 0), _typeface(), text_size, TEXT_WEIGHT)
    return left, top, width, height


def text_mask(text: str, text_size: int) -> Image.Image:
    """How much of each pixel the text covers, 0..255, in an image that just holds it."""
    left, top, width, height = _text_box(text, text_size)
    mask = np.zeros((max(height, 1), max(width, 1)), np.uint8)
    cv2.putText(mask, text, (-left, -top), 255, _typeface(), text_size, TEXT_WEIGHT)
    return Image.fromarray(mask)
