"""Pixels of a layout, warped straight into the network's input.

Where the warp only moves and scales (the published default) every tile is cut to what will be seen of it and resized
into its place: no canvas, no second interpolation. Cuts are made at whole pixels, and the matrix that is returned is
that of the cut, so boxes stay exactly on their objects. A warp that turns or shears goes through a canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolofleet.data.geometry import AxisMap, Matrix, Rectangle, scaling_and_shift
from yolofleet.data.mosaic import Layout, Tile
from yolofleet.data.picture import Picture

GREY = 114
_BORDER = (GREY, GREY, GREY)
MOST_GAIN_OF_A_CUT = 2.0
"""A picture that is enlarged more is warped: cuts at its whole pixels would be coarse."""


@dataclass(frozen=True)
class Placement:
    """Where a picture came to lie in the output.

    Attributes:
        picture: Its number in the micro-batch.
        visible: x1, y1, x2, y2 in the picture's pixels: what its cell on the canvas shows of it.
        matrix: 3x3, from picture pixels to output pixels.
        region: x1, y1, x2, y2 in the output: nothing of the picture lies outside.
        scale: (across, down) from picture to output without any turn, for comparing areas.
    """

    picture: int
    visible: Rectangle
    matrix: Matrix
    region: Rectangle
    scale: tuple[float, float]

    @property
    def is_upright(self) -> bool:
        """Whether the picture is only moved and scaled."""
        return bool(self.matrix[0, 1] == self.matrix[1, 0] == self.matrix[2, 0] == self.matrix[2, 1] == 0)


def render(
    layout: Layout, pictures: list[Picture], warp: Matrix, scale: float, output: NDArray[np.uint8]
) -> list[Placement]:
    """Draw a layout into ``output`` (side, side, 3), all of which is written; returns where each picture lies."""
    upright = AxisMap.of(warp)
    if upright is None:
        return _draw_through_canvas(layout, pictures, warp, scale, output)
    output.fill(GREY)
    placements = [_draw_cut(tile, pictures[tile.picture], upright, scale, output) for tile in layout.tiles]
    return [placement for placement in placements if placement is not None]


def _draw_cut(tile: Tile, picture: Picture, warp: AxisMap, scale: float, output: NDArray[np.uint8]) -> Placement | None:
    """Cut out of the picture what will be seen and resize it into its place; None if nothing is seen."""
    side = output.shape[0]
    left, top, right, bottom = warp.rectangle(tile.cell)
    x1, x2 = max(0, round(left)), min(side, round(right))
    y1, y2 = max(0, round(top)), min(side, round(bottom))
    if x1 >= x2 or y1 >= y2:
        return None
    to_output = warp.after(tile.to_canvas)
    region = output[y1:y2, x1:x2]
    if to_output.across > MOST_GAIN_OF_A_CUT or to_output.down > MOST_GAIN_OF_A_CUT:
        _warp_into(region, picture.pixels, AxisMap(1, 1, -x1, -y1).after(to_output).matrix())
    else:
        left, top, right, bottom = to_output.inverse().rectangle((x1, y1, x2, y2))
        u1, u2 = _whole_span(left, right, picture.size[0])
        v1, v2 = _whole_span(top, bottom, picture.size[1])
        cv2.resize(picture.pixels[v1:v2, u1:u2], (x2 - x1, y2 - y1), dst=region)
        across, down = (x2 - x1) / (u2 - u1), (y2 - y1) / (v2 - v1)
        to_output = AxisMap(across, down, x1 - u1 * across, y1 - v1 * down)
    visible = tile.to_canvas.inverse().rectangle(tile.cell)
    gains = (scale * tile.to_canvas.across, scale * tile.to_canvas.down)
    return Placement(tile.picture, visible, to_output.matrix(), (x1, y1, x2, y2), gains)


def _whole_span(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the span in whole pixels nearest to [low, high], inside 0..size and at least one pixel long."""
    start = min(max(round(low), 0), size - 1)
    return start, min(max(round(high), start + 1), size)


def _draw_through_canvas(
    layout: Layout, pictures: list[Picture], warp: Matrix, scale: float, output: NDArray[np.uint8]
) -> list[Placement]:
    canvas = np.full((layout.size, layout.size, 3), GREY, dtype=np.uint8)
    side = output.shape[0]
    placements = []
    for tile in layout.tiles:
        on_canvas = _draw_cut(tile, pictures[tile.picture], AxisMap(1, 1, 0, 0), 1.0, canvas)
        if on_canvas is None:
            continue
        gains = (scale * on_canvas.scale[0], scale * on_canvas.scale[1])
        matrix = warp @ on_canvas.matrix
        placements.append(Placement(tile.picture, on_canvas.visible, matrix, (0, 0, side, side), gains))
    _warp_into(output, canvas, warp)
    return placements


def _warp_into(output: NDArray[np.uint8], pixels: NDArray[np.uint8], matrix: Matrix) -> None:
    """Warp a picture so that it fills the output; what lies beyond its edge repeats the edge, or is grey if turned."""
    # OpenCV counts from pixel centres, our coordinates from pixel edges: half a pixel on both ends.
    centred = scaling_and_shift(1, 1, -0.5, -0.5) @ matrix @ scaling_and_shift(1, 1, 0.5, 0.5)
    size = (output.shape[1], output.shape[0])
    if matrix[2, :2].any():
        cv2.warpPerspective(pixels, centred, size, output, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT, _BORDER)
    elif matrix[0, 1] or matrix[1, 0]:
        cv2.warpAffine(pixels, centred[:2], size, output, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT, _BORDER)
    else:
        cv2.warpAffine(pixels, centred[:2], size, output, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
