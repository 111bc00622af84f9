"""Mosaics: the layout of a sample's images on a canvas, drawn and warped straight into the network's input.

A layout holds one image, four around a point, or nine around the first. An image is scaled so that its longer side is
the output size s. A mosaic's canvas is a square of 2s: four images meet at a point drawn between s/2 and 3s/2; of nine,
laid out on 3s, a square of 2s is cut out at a drawn position. Each image is cut to its own cell, so cells never
overlap, and what no image covers stays grey.

Where the warp only moves and scales (the published default) every tile is cut to its visible part and resized into its
region of the output: no canvas, no second interpolation. Cuts are made at whole pixels, and the matrix that is returned
is that of the cut, so boxes stay exactly on their objects. A warp that turns or shears goes through a canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolofleet.data.geometry import AxisMap, Matrix, Placement, Rectangle, scaling_and_shift
from yolofleet.data.records import LabelledImage

GREY = 114
MOST_GAIN_OF_A_CUT = 2.0
"""An image that is enlarged more is warped: cuts at its whole pixels would be coarse."""
_BORDER = (GREY, GREY, GREY)


@dataclass(frozen=True)
class Tile:
    """One image on a canvas."""

    image: int
    """Its number in the micro-batch."""
    to_canvas: AxisMap
    """From image pixels to canvas pixels."""
    cell: Rectangle
    """x1, y1, x2, y2 on the canvas; nothing of the image is seen outside."""


@dataclass(frozen=True)
class Layout:
    """The tiles of a canvas of ``size`` x ``size`` pixels."""

    size: int
    tiles: tuple[Tile, ...]


Sizes = list[tuple[int, int]]
"""(width, height) of every image of the micro-batch."""


def single_image(image: int, sizes: Sizes, side: int) -> Layout:
    """Return the layout of one image, centred on a canvas of the output's size (whole pixels, as a letterbox)."""
    width, height, gain = _fit(sizes[image], side)
    left, top = (side - width) // 2, (side - height) // 2
    tile = Tile(image, _map_to_canvas(sizes[image], gain, left, top), (left, top, left + width, top + height))
    return Layout(side, (tile,))


def mosaic_of_four(images: list[int], sizes: Sizes, side: int, generator: np.random.Generator) -> Layout:
    """Return the layout of four images whose inner corners meet at a point."""
    centre_x, centre_y = (int(value) for value in generator.uniform(side / 2, side * 3 / 2, size=2))
    size = 2 * side
    tiles = []
    for slot, image in enumerate(images):
        width, height, gain = _fit(sizes[image], side)
        is_right, is_below = slot % 2, slot // 2
        left = centre_x if is_right else centre_x - width
        top = centre_y if is_below else centre_y - height
        cell = (max(left, 0), max(top, 0), min(left + width, size), min(top + height, size))
        tiles.append(Tile(image, _map_to_canvas(sizes[image], gain, left, top), cell))
    return Layout(size, tuple(tiles))


def mosaic_of_nine(images: list[int], sizes: Sizes, side: int, generator: np.random.Generator) -> Layout:
    """Return the layout of nine images, each pushed against the middle one, in a window of two output sizes."""
    window_x, window_y = (int(value) for value in generator.uniform(0, side, size=2))
    size = 2 * side
    middle_width, middle_height, _ = _fit(sizes[images[0]], side)
    slots = [(1, 1), (1, 0), (2, 0), (2, 1), (2, 2), (1, 2), (0, 2), (0, 1), (0, 0)]
    tiles = []
    for (column, row), image in zip(slots, images, strict=True):
        width, height, gain = _fit(sizes[image], side)
        left = (side - width, side, side + middle_width)[column] - window_x
        top = (side - height, side, side + middle_height)[row] - window_y
        # The middle column and row are as wide as the middle image: others there are cut to it.
        right = left + (min(width, middle_width) if column == 1 else width)
        bottom = top + (min(height, middle_height) if row == 1 else height)
        cell = (max(left, 0), max(top, 0), min(right, size), min(bottom, size))
        if cell[0] < cell[2] and cell[1] < cell[3]:
            tiles.append(Tile(image, _map_to_canvas(sizes[image], gain, left, top), cell))
    return Layout(size, tuple(tiles))


def draw_partners(own: int, num_images: int, count: int, generator: np.random.Generator) -> list[int]:
    """Return ``count`` images of the micro-batch in random slots of the mosaic, the sample's own among them.

    Partners are drawn without repetition as long as there are enough of them; a small micro-batch repeats.
    """
    others = [image for image in range(num_images) if image != own] or [own]
    drawn = [own]
    while len(drawn) < count:
        drawn += [others[index] for index in generator.permutation(len(others))[: count - len(drawn)]]
    return [drawn[index] for index in generator.permutation(count)]


def _fit(size: tuple[int, int], side: int) -> tuple[int, int, float]:
    """Return width and height in whole pixels, at least 1, and the gain of an image scaled to a longer side."""
    gain = side / max(size)
    return max(1, round(size[0] * gain)), max(1, round(size[1] * gain)), gain


def _map_to_canvas(size: tuple[int, int], gain: float, left: float, top: float) -> AxisMap:
    """Return the map to whole canvas pixels: the rounded size decides, so box edges stay on pixel edges."""
    return AxisMap(max(1, round(size[0] * gain)) / size[0], max(1, round(size[1] * gain)) / size[1], left, top)


def render(
    layout: Layout, images: list[LabelledImage], warp: Matrix, scale: float, output: NDArray[np.uint8]
) -> list[Placement]:
    """Draw a layout into ``output`` (side, side, 3), all of which is written; returns the placement of each image."""
    upright = AxisMap.of(warp)
    if upright is None:
        return _draw_through_canvas(layout, images, warp, scale, output)
    output.fill(GREY)
    placements = [_draw_cut(tile, images[tile.image], upright, scale, output) for tile in layout.tiles]
    return [placement for placement in placements if placement is not None]


def _draw_cut(
    tile: Tile, image: LabelledImage, warp: AxisMap, scale: float, output: NDArray[np.uint8]
) -> Placement | None:
    """Cut the visible part out of an image and resize it into its region; None if nothing is visible."""
    side = output.shape[0]
    left, top, right, bottom = warp.rectangle(tile.cell)
    x1, x2 = max(0, round(left)), min(side, round(right))
    y1, y2 = max(0, round(top)), min(side, round(bottom))
    if x1 >= x2 or y1 >= y2:
        return None
    to_output = warp.after(tile.to_canvas)
    region = output[y1:y2, x1:x2]
    if to_output.scale_x > MOST_GAIN_OF_A_CUT or to_output.scale_y > MOST_GAIN_OF_A_CUT:
        _warp_into(region, image.pixels, AxisMap(1, 1, -x1, -y1).after(to_output).matrix())
    else:
        left, top, right, bottom = to_output.inverse().rectangle((x1, y1, x2, y2))
        u1, u2 = _whole_span(left, right, image.size[0])
        v1, v2 = _whole_span(top, bottom, image.size[1])
        cv2.resize(image.pixels[v1:v2, u1:u2], (x2 - x1, y2 - y1), dst=region)
        scale_x, scale_y = (x2 - x1) / (u2 - u1), (y2 - y1) / (v2 - v1)
        to_output = AxisMap(scale_x, scale_y, x1 - u1 * scale_x, y1 - v1 * scale_y)
    visible = tile.to_canvas.inverse().rectangle(tile.cell)
    gains = (scale * tile.to_canvas.scale_x, scale * tile.to_canvas.scale_y)
    return Placement(tile.image, visible, to_output.matrix(), (x1, y1, x2, y2), gains)


def _whole_span(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the span in whole pixels nearest to [low, high], inside 0..size and at least one pixel long."""
    start = min(max(round(low), 0), size - 1)
    return start, min(max(round(high), start + 1), size)


def _draw_through_canvas(
    layout: Layout, images: list[LabelledImage], warp: Matrix, scale: float, output: NDArray[np.uint8]
) -> list[Placement]:
    canvas = np.full((layout.size, layout.size, 3), GREY, dtype=np.uint8)
    side = output.shape[0]
    placements = []
    for tile in layout.tiles:
        on_canvas = _draw_cut(tile, images[tile.image], AxisMap(1, 1, 0, 0), 1.0, canvas)
        if on_canvas is None:
            continue
        gains = (scale * on_canvas.scale[0], scale * on_canvas.scale[1])
        matrix = warp @ on_canvas.matrix
        placements.append(Placement(tile.image, on_canvas.visible, matrix, (0, 0, side, side), gains))
    _warp_into(output, canvas, warp)
    return placements


def _warp_into(output: NDArray[np.uint8], pixels: NDArray[np.uint8], matrix: Matrix) -> None:
    """Warp an image so that it fills the output; what lies beyond its edge repeats the edge, or is grey if turned."""
    # OpenCV counts from pixel centres, our coordinates from pixel edges: half a pixel on both ends.
    centred = scaling_and_shift(1, 1, -0.5, -0.5) @ matrix @ scaling_and_shift(1, 1, 0.5, 0.5)
    size = (output.shape[1], output.shape[0])
    if matrix[2, :2].any():
        cv2.warpPerspective(pixels, centred, size, output, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT, _BORDER)
    elif matrix[0, 1] or matrix[1, 0]:
        cv2.warpAffine(pixels, centred[:2], size, output, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT, _BORDER)
    else:
        cv2.warpAffine(pixels, centred[:2], size, output, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
