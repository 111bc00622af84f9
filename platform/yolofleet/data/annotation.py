"""``KEY.json``, the annotation of a sample: checked whole before any of it is used.

A shard may come from a stranger, so nothing in it is taken for what a build would have written: every value has its
type and its bounds, and columns are equally long. One wrong value makes the whole sample unusable; it is skipped and
counted. A box may end outside its image: it is clipped where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.data.box_checks import LARGEST_AREA, are_numbers, is_sound_segmentation
from yolofleet.data.manifest import whole_number
from yolofleet.data.records import MOST_WHOLE_NUMBER, ImageRecord

MOST_ANNOTATION_BYTES = 16 * 2**20
LARGEST_BOX_PIXELS = 1e9
LONGEST_SIDE_PIXELS = 2**31 - 1


class RecordError(UserError):
    """The annotation of a sample is damaged."""


def read_annotation(data: bytes, num_classes: int) -> ImageRecord:
    """Read ``KEY.json`` as ``ImageRecord.to_json`` writes it.

    Args:
        data: Its bytes.
        num_classes: Classes of the dataset.

    Raises:
        RecordError: Anything in it cannot be; says what.
    """
    try:
        document = json.loads(data)
        boxes = _column(document, "boxes", None, _are_boxes, "x, y, width and height")
        count = len(boxes)
        segmentations = [None] * count
        if document.get("segmentations") is not None:
            segmentations = _column(
                document,
                "segmentations",
                count,
                lambda column: all(map(is_sound_segmentation, column)),
                "polygons or an RLE",
            )
        classes = _column(
            document,
            "classes",
            count,
            lambda column: {*map(type, column)} <= {int} and all(0 <= entry < num_classes for entry in column),
            f"a class from 0 to {num_classes - 1}",
        )
        return ImageRecord(
            whole_number(document, "image_id", -MOST_WHOLE_NUMBER),
            _name(document),
            whole_number(document, "width", 1, LONGEST_SIDE_PIXELS),
            whole_number(document, "height", 1, LONGEST_SIDE_PIXELS),
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array(classes, dtype=np.int64),
            np.array(_column(document, "iscrowd", count, _are_flags, "0 or 1"), dtype=np.bool_),
            np.array(_column(document, "areas", count, _are_areas, "an area"), dtype=np.float64),
            tuple(entry or None for entry in segmentations),
            _upright(document),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"the annotation is damaged: {type(error).__name__}: {error}") from error


def _column(
    document: dict[str, Any], key: str, count: int | None, are_sound: Callable[[list[Any]], bool], wanted: str
) -> list[Any]:
    """Return a column once all its entries are sound; they are checked at once, for every training sample has some."""
    column = document[key]
    if not isinstance(column, list) or count not in (None, len(column)):
        raise ValueError(f"{key} is {column!r:.60}, not a list of {'boxes' if count is None else count}")
    if not are_sound(column):
        wrong = next(entry for entry in column if not are_sound([entry]))
        raise ValueError(f"{key} holds {wrong!r:.60}, not {wanted}")
    return column


def _are_boxes(column: list[Any]) -> bool:
    if not all(isinstance(entry, list) and len(entry) == 4 for entry in column):
        return False
    return are_numbers([*chain.from_iterable(column)], -LARGEST_BOX_PIXELS, LARGEST_BOX_PIXELS) and all(
        width >= 0 and height >= 0 for _, _, width, height in column
    )


def _are_flags(column: list[Any]) -> bool:
    return all(entry in (0, 1) for entry in column)


def _are_areas(column: list[Any]) -> bool:
    return are_numbers(column, 0.0, LARGEST_AREA)


def _upright(document: dict[str, Any]) -> bool | None:
    upright = document.get("upright")
    if upright is None or isinstance(upright, bool):
        return upright
    raise ValueError(f"upright is {upright!r:.60}, not true or false")


def _name(document: dict[str, Any]) -> str:
    name = document["file_name"]
    if not isinstance(name, str):
        raise ValueError(f"file_name is {name!r:.60}, not text")
    name.encode()  # JSON allows halves of surrogate pairs, UTF-8 does not
    return name
