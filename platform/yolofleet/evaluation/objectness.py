"""Objectness maps: where each level of the lead and of the auxiliary head expects objects (paper Figure 8).

Auxiliary heads exist in the training form alone; of a deployed form there are the maps of the lead head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from yolofleet.data.draw import MARGIN, text_mask
from yolofleet.data.letterbox import Letterbox, letterbox
from yolofleet.models.network import Network

PANEL, GAP, CAPTION, SCALE_HEIGHT = 360, 10, 30, 14
TEXT_SIZE = 15
INK = (226, 230, 236)
SHADE = 0.45
"""How much of the grey image is seen below a map."""
MOST_OPAQUE = 0.85
"""Of a map where it is highest."""
SMALLEST_PEAK = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectnessMap:
    """Objectness of one level of one head in one image."""

    head: Literal["lead", "auxiliary"]
    stride: int
    """Pixels of the network's input a cell."""
    values: NDArray[np.float32]
    """(rows, columns): the highest objectness of a cell's anchors, 0..1."""


@torch.inference_mode()
def objectness_maps(model: Network, image: NDArray[np.uint8], image_size: int) -> tuple[list[ObjectnessMap], Letterbox]:
    """Return the maps of an image, lead levels first, and where the image lies in the network's input.

    Args:
        model: In evaluation mode; the training form has the auxiliary levels.
        image: (H, W, 3) uint8 RGB.
        image_size: Long side of the network's input in pixels.
    """
    boxed, box = letterbox(image, (image_size, image_size), stride=model.max_stride, auto=True, scale_up=True)
    pixels = torch.from_numpy(boxed).permute(2, 0, 1)[None].to(model.anchors.device).float() / 255
    raw = model.raw(pixels)  # (1, anchors, rows, columns, 5 + C) each
    num_lead = len(model.strides)
    maps = [
        ObjectnessMap(
            head="lead" if level < num_lead else "auxiliary",
            stride=model.strides[level % num_lead],
            values=x[0, ..., 4].float().sigmoid().amax(0).cpu().numpy(),
        )
        for level, x in enumerate(raw)
    ]
    return maps, box


def draw_objectness(image: NDArray[np.uint8], maps: Sequence[ObjectnessMap], box: Letterbox) -> Image.Image:
    """Draw maps over their image: a row for each head, a column for each level, and one scale of colours for all.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: Of `objectness_maps`.
        box: Where the image lies in the network's input.
    """
    peak = max(SMALLEST_PEAK, *(float(entry.values.max()) for entry in maps))
    factor = PANEL / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    plain = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    rows = [[entry for entry in maps if entry.head == head] for head in ("lead", "auxiliary")]
    rows = [row for row in rows if row]
    step_x, step_y = max(size[0], PANEL * 2 // 3) + GAP, size[1] + CAPTION + GAP
    width = GAP + step_x * (1 + max(map(len, rows)))
    drawing = Image.new("RGB", (width, GAP + step_y * len(rows)), MARGIN)
    _put(drawing, plain, "image", (GAP, GAP))
    _put_scale(drawing, peak, (GAP, GAP + size[1] + CAPTION + GAP), step_x - GAP)
    for row, entries in enumerate(rows):
        for column, entry in enumerate(entries, start=1):
            caption = f"{entry.head}, stride {entry.stride}: up to {entry.values.max():.3f}"
            _put(drawing, _overlay(plain, entry, box, peak), caption, (GAP + column * step_x, GAP + row * step_y))
    return drawing


def _overlay(plain: NDArray[np.uint8], entry: ObjectnessMap, box: Letterbox, peak: float) -> NDArray[np.uint8]:
    """Return the image in dark grey with a map over it, each cell as large as it is."""
    rows, columns = entry.values.shape
    input_size = columns * entry.stride, rows * entry.stride
    cells = cv2.resize(entry.values, input_size, interpolation=cv2.INTER_NEAREST)
    cells = cells[
        box.pad_top : box.pad_top + box.resized_height, box.pad_left : box.pad_left + box.resized_width
    ]  # without the padding
    cells = cv2.resize(cells, (plain.shape[1], plain.shape[0]), interpolation=cv2.INTER_NEAREST) / peak  # (h, w)
    grey = np.repeat(cv2.cvtColor(plain, cv2.COLOR_RGB2GRAY)[..., None], 3, 2) * SHADE
    share = MOST_OPAQUE * cells[..., None]
    mixed: NDArray[np.uint8] = (_colours(cells) * share + grey * (1 - share)).round().astype(np.uint8)
    return mixed


def _colours(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the colour of each value 0..1: (h, w) -> (h, w, 3) RGB, from dark violet to light yellow."""
    steps = (values * 255).round().astype(np.uint8)
    colours: NDArray[np.uint8] = cv2.applyColorMap(steps, cv2.COLORMAP_INFERNO)[..., ::-1]
    return colours


def _put(drawing: Image.Image, pixels: NDArray[np.uint8], caption: str, corner: tuple[int, int]) -> None:
    drawing.paste(Image.fromarray(pixels), corner)
    _write(drawing, caption, (corner[0], corner[1] + pixels.shape[0] + 7))


def _put_scale(drawing: Image.Image, peak: float, corner: tuple[int, int], width: int) -> None:
    """Draw the scale of colours below the image; where there is one row alone, beside the caption."""
    low, high = "0", f"{peak:.3f}"
    room = 46
    if corner[1] + SCALE_HEIGHT > drawing.height:
        corner, width = (corner[0] + 60, corner[1] - CAPTION - GAP + 7), width - 60
    ramp = np.tile(np.linspace(0, 1, max(1, width - room - 16), dtype=np.float32), (SCALE_HEIGHT, 1))
    _write(drawing, low, corner)
    drawing.paste(Image.fromarray(_colours(ramp)), (corner[0] + 14, corner[1]))
    _write(drawing, high, (corner[0] + width - room + 4, corner[1]))


def _write(drawing: Image.Image, text: str, corner: tuple[int, int]) -> None:
    mask = text_mask(text, TEXT_SIZE)
    drawing.paste(INK, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
