"""Where the pictures of a sample lie on its canvas: alone, four around a point, or nine around the first.

A picture is scaled so that its longer side is the output size s. A mosaic's canvas is a square of 2s: four pictures
meet at a point drawn between s/2 and 3s/2; of nine, laid out on 3s, a square of 2s is cut out at a drawn place. Each
picture is cut to its own cell, so cells never overlap, and what no picture covers stays grey.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolofleet.data.geometry import AxisMap, Rectangle


@dataclass(frozen=True)
class Tile:
    """One picture on a canvas.

    Attributes:
        picture: Its number in the micro-batch.
        to_canvas: From picture pixels to canvas pixels.
        cell: x1, y1, x2, y2 on the canvas; nothing of the picture is seen outside.
    """

    picture: int
    to_canvas: AxisMap
    cell: Rectangle


@dataclass(frozen=True)
class Layout:
    """The tiles of a canvas of ``size`` x ``size`` pixels."""

    size: int
    tiles: tuple[Tile, ...]


Sizes = list[tuple[int, int]]
"""(width, height) of every picture of the micro-batch."""


def alone(picture: int, sizes: Sizes, side: int) -> Layout:
    """Return one picture, centred on a canvas of the output's size (whole pixels, as a letterbox)."""
    width, height, gain = _fitted(sizes[picture], side)
    left, top = (side - width) // 2, (side - height) // 2
    tile = Tile(picture, _placed(sizes[picture], gain, left, top), (left, top, left + width, top + height))
    return Layout(side, (tile,))


def mosaic_of_four(pictures: list[int], sizes: Sizes, side: int, generator: np.random.Generator) -> Layout:
    """Return four pictures that meet at a point with their inner corners."""
    centre_x, centre_y = (int(value) for value in generator.uniform(side / 2, side * 3 / 2, size=2))
    size = 2 * side
    tiles = []
    for place, picture in enumerate(pictures):
        width, height, gain = _fitted(sizes[picture], side)
        is_right, is_below = place % 2, place // 2
        left = centre_x if is_right else centre_x - width
        top = centre_y if is_below else centre_y - height
        cell = (max(left, 0), max(top, 0), min(left + width, size), min(top + height, size))
        tiles.append(Tile(picture, _placed(sizes[picture], gain, left, top), cell))
    return Layout(size, tuple(tiles))


def mosaic_of_nine(pictures: list[int], sizes: Sizes, side: int, generator: np.random.Generator) -> Layout:
    """Return nine pictures, each pushed against the middle one, seen through a window of two output sizes."""
    window_x, window_y = (int(value) for value in generator.uniform(0, side, size=2))
    size = 2 * side
    middle_width, middle_height, _ = _fitted(sizes[pictures[0]], side)
    places = [(1, 1), (1, 0), (2, 0), (2, 1), (2, 2), (1, 2), (0, 2), (0, 1), (0, 0)]
    tiles = []
    for (column, row), picture in zip(places, pictures, strict=True):
        width, height, gain = _fitted(sizes[picture], side)
        left = (side - width, side, side + middle_width)[column] - window_x
        top = (side - height, side, side + middle_height)[row] - window_y
        # The middle column and row are as wide as the middle picture: others there are cut to it.
        right = left + (min(width, middle_width) if column == 1 else width)
        bottom = top + (min(height, middle_height) if row == 1 else height)
        cell = (max(left, 0), max(top, 0), min(right, size), min(bottom, size))
        if cell[0] < cell[2] and cell[1] < cell[3]:
            tiles.append(Tile(picture, _placed(sizes[picture], gain, left, top), cell))
    return Layout(size, tuple(tiles))


def draw_partners(own: int, num_pictures: int, count: int, generator: np.random.Generator) -> list[int]:
    """Return ``count`` pictures of the micro-batch in random places, the sample's own among them.

    Partners are drawn without repetition as long as there are enough of them; a small micro-batch repeats.
    """
    others = [picture for picture in range(num_pictures) if picture != own] or [own]
    drawn = [own]
    while len(drawn) < count:
        drawn += [others[place] for place in generator.permutation(len(others))[: count - len(drawn)]]
    return [drawn[place] for place in generator.permutation(count)]


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int, float]:
    """Return width and height in whole pixels, at least 1, and the gain of a picture scaled to a longer side."""
    gain = side / max(size)
    return max(1, round(size[0] * gain)), max(1, round(size[1] * gain)), gain


def _placed(size: tuple[int, int], gain: float, left: float, top: float) -> AxisMap:
    """Return the map to whole canvas pixels: the rounded size decides, so box edges stay on pixel edges."""
    across, down = max(1, round(size[0] * gain)) / size[0], max(1, round(size[1] * gain)) / size[1]
    return AxisMap(across, down, left, top)
