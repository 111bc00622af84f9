"""Encoding pictures anew when shards are built: smaller files, faster decoding, at a loss of quality that is chosen."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import simplejpeg

from yolofleet.data.picture_checks import CheckedPicture
from yolofleet.data.records import ImageRecord, Segmentation


def reencode(
    checked: CheckedPicture, original: bytes, quality: int, longest_side: int | None
) -> tuple[bytes, str, ImageRecord]:
    """Encode a picture as JPEG of a quality, scaled down to a longest side; keep the original where it is smaller.

    Returns:
        Bytes, extension, and the record scaled with the picture.
    """
    height, width = checked.pixels.shape[:2]
    gain = 1.0 if longest_side is None else min(1.0, longest_side / max(width, height))
    new_width, new_height = max(1, round(width * gain)), max(1, round(height * gain))
    pixels = checked.pixels
    if (new_width, new_height) != (width, height):
        pixels = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_AREA)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB")
    if (new_width, new_height) == (width, height) and len(data) >= len(original):
        return original, checked.extension, checked.record
    return data, "jpg", _scaled(checked.record, new_width, new_height)


def _scaled(record: ImageRecord, width: int, height: int) -> ImageRecord:
    if (record.width, record.height) == (width, height):
        return record
    across, down = width / record.width, height / record.height
    return replace(
        record,
        width=width,
        height=height,
        boxes=record.boxes * [across, down, across, down],
        areas=record.areas * (across * down),
        segmentations=tuple(_scaled_segmentation(entry, across, down) for entry in record.segmentations),
    )


def _scaled_segmentation(segmentation: Segmentation, across: float, down: float) -> Segmentation:
    """Scale polygons; an RLE speaks of the old pixels and is left out (its box stays)."""
    if not isinstance(segmentation, list):
        return None
    gains = (across, down)
    return [[value * gains[place % 2] for place, value in enumerate(polygon)] for polygon in segmentation]
