"""A micro-batch as an image: what the network sees, with its targets."""

from __future__ import annotations

import math

import cv2
import numpy as np

from yolofleet.data.micro_batch import MicroBatch

_COLOURS = ((230, 30, 90), (20, 140, 255), (40, 200, 60), (255, 160, 0), (160, 60, 255), (0, 200, 200), (240, 230, 30))
_GAP_PIXELS = 4


def draw_micro_batch(batch: MicroBatch, names: list[str]) -> bytes:
    """Return a PNG with every image of a micro-batch, its targets drawn and named.

    Args:
        batch: The micro-batch.
        names: Names by class index.
    """
    count, _, height, width = batch.images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + _GAP_PIXELS), columns * (width + _GAP_PIXELS), 3), 255, dtype=np.uint8)
    targets = batch.targets.numpy()
    for place in range(count):
        image = np.ascontiguousarray(batch.images[place].numpy().transpose(1, 2, 0))  # (H, W, 3)
        for _, index, x, y, across, down in targets[targets[:, 0] == place]:
            left, top = round((x - across / 2) * width), round((y - down / 2) * height)
            right, bottom = round((x + across / 2) * width) - 1, round((y + down / 2) * height) - 1
            colour = _COLOURS[int(index) % len(_COLOURS)]
            cv2.rectangle(image, (left, top), (right, bottom), colour, 1)
            at = (left + 2, max(10, top - 3))
            cv2.putText(image, names[int(index)], at, cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, 1, cv2.LINE_AA)
        row, column = divmod(place, columns)
        down_to, across_to = row * (height + _GAP_PIXELS), column * (width + _GAP_PIXELS)
        sheet[down_to : down_to + height, across_to : across_to + width] = image
    encoded, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert encoded
    return bytes(data)
