"""The checks of annotations: of one box, as all readers share them, and of ``KEY.json``, the annotation of a sample.

A box of a foreign format is cleaned, or left out with its reason.

A shard may come from a stranger, so nothing in a ``KEY.json`` is taken for what a build would have written: every value
has its type and its bounds, and columns are equally long. One wrong value makes the whole sample unusable; it is
skipped and counted. A box may end outside its image: it is clipped where it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.core.text import short
from yolofleet.data.json_values import are_numbers, is_number
from yolofleet.data.manifest import whole_number
from yolofleet.data.outline_box import (
    Box,
    box_of_outline,
    clean_segmentation,
    is_sound_segmentation,
    overlap,
    rotated_box,
    scaled_box,
)
from yolofleet.data.records import MOST_WHOLE_NUMBER, ImageRecord, Segmentation

LARGEST_AREA = 1e18
MOST_DEGREES = 1e4
THINNEST_BOX_PIXELS = 0.01
MOST_ANNOTATION_BYTES = 16 * 2**20
LARGEST_BOX_PIXELS = 1e9
LONGEST_SIDE_PIXELS = 2**31 - 1


class AnnotationError(UserError):
    """An annotation file cannot be used at all."""


class BoxProblem(Exception):  # noqa: N818 - it carries a kind of problem, it is no error of the program
    """The annotation is left out; ``kind`` is the problem to count."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class CleanBox:
    """A box that can be used, and the problems that were repaired."""

    box: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    segmentation: Segmentation
    outline_box: Box | None
    """The box around the segmentation, in pixels of the image; None where it is an RLE that nothing follows from."""
    repairs: tuple[str, ...]


def clean_numbers(annotation: dict[str, Any], size: tuple[int, int] = (0, 0)) -> CleanBox:
    """Check what can be checked without the image's file.

    Args:
        annotation: As COCO has it.
        size: (width, height) of the image that the annotation speaks of; (0, 0) where it is not known.

    Raises:
        BoxProblem: The annotation must be left out.
    """
    repairs = []
    segmentation, is_sound = clean_segmentation(annotation.get("segmentation"))
    if not is_sound:
        repairs.append("segmentation_malformed")
    own_size = mask_size(segmentation)
    is_of_other_size = own_size is not None and all(size) and own_size != size
    attributes = annotation.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
    degrees = float(rotation) if is_number(rotation) and abs(rotation) <= MOST_DEGREES else 0.0
    wrong: BoxProblem | None = None
    try:
        box = _sound_box(annotation.get("bbox"))
    except BoxProblem as problem:
        wrong = problem
    is_rle_aside = own_size is not None and not (is_of_other_size or degrees or wrong)  # decoding it takes long
    outline = None if is_rle_aside else box_of_outline(segmentation)
    if own_size is not None and is_of_other_size:
        repairs.append("mask_of_other_size")
        segmentation = None
        outline = None if outline is None else scaled_box(outline, own_size, size)
    if wrong is not None:
        if outline is None and is_of_other_size:
            seen = f"{wrong}; the RLE is of {own_size}, the image of {size}"
            raise BoxProblem("box_mask_of_other_shape", seen)
        if outline is None:
            raise wrong
        box = _sound_box(outline)
        repairs.append("box_from_outline")
    elif degrees:
        turned = rotated_box(box, degrees)
        # Where there is an outline, it tells whether the box around it is turned already.
        if outline is None or overlap(turned, outline) > overlap(box, outline):
            box = turned
            repairs.append("box_rotated")
    x, y, width, height = box
    area = annotation.get("area")
    if not is_number(area) or not 0 <= area <= LARGEST_AREA:
        area = width * height
        repairs.append("area_missing")
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        repairs.append("iscrowd_malformed")
    return CleanBox((x, y, width, height), float(area), crowd == 1, segmentation, outline, tuple(repairs))


def mask_size(segmentation: Segmentation) -> tuple[int, int] | None:
    """Return the (width, height) that an RLE counts its pixels in."""
    return (segmentation["size"][1], segmentation["size"][0]) if isinstance(segmentation, dict) else None


def _sound_box(values: Any) -> Box:
    """Return a bbox that is one.

    Raises:
        BoxProblem: It is none.
    """
    if values is None:
        raise BoxProblem("box_missing", "no bbox")
    if not isinstance(values, list) or len(values) != 4 or any(not is_number(value) for value in values):
        raise BoxProblem("box_malformed", f"bbox {short(values)}")
    try:
        x, y, width, height = (float(value) for value in values)
    except OverflowError:
        raise BoxProblem("box_not_finite", "bbox holds a number too large for a float") from None
    if not all(math.isfinite(value) for value in (x, y, x + width, y + height, width * height)):
        raise BoxProblem("box_not_finite", f"bbox {values}")
    if width < 0 or height < 0:
        raise BoxProblem("box_negative", f"bbox {values}")
    if width == 0 or height == 0:
        raise BoxProblem("box_zero_area", f"bbox {values}")
    if min(width, height) < THINNEST_BOX_PIXELS:
        raise BoxProblem("box_tiny", f"bbox {values}")
    return [x, y, width, height]


def build_record(
    image_id: int, file_name: str, size: tuple[int, int], boxes: Sequence[tuple[int, CleanBox]]
) -> ImageRecord:
    """Return the record of an image from its boxes, each with its class index; a size of (0, 0) is unknown."""
    return ImageRecord(
        image_id,
        file_name,
        *size,
        np.asarray([clean.box for _, clean in boxes], dtype=np.float64).reshape(-1, 4),
        np.asarray([index for index, _ in boxes], dtype=np.int64),
        np.asarray([clean.is_crowd for _, clean in boxes], dtype=np.bool_),
        np.asarray([clean.area for _, clean in boxes], dtype=np.float64),
        tuple(clean.segmentation for _, clean in boxes),
    )


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
