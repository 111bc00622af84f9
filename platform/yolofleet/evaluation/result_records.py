"""The records of a result file in columns, under the names and in the forms that tools give them.

Columns are checked as a whole, because a file of half a million records is common; only where a column is wrong, the
records are looked at one by one for the first wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural, short

FIELDS: dict[str, tuple[str, ...]] = {
    "image_id": ("image_id", "file_name", "filename", "image_name", "img_id", "image"),
    "category_id": ("category_id", "category_name", "class_id", "class_name", "category", "label", "class"),
    "bbox": ("bbox", "box"),
    "score": ("score", "confidence", "conf"),
}
"""The fields of a record, and the keys under which they are found; the first is COCO's."""
LARGEST = 1e300
ROUNDED_ONE = 1 + 1e-3
"""A score may pass the end of its scale by so much: sums of a softmax in half precision do."""
LEAST_PERCENT = 2.0
"""The best score of a file in percent is above this; between, no scale is likely."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Something about a file of detections that its user should know.

    Attributes:
        kind: A short word to count it by.
        count: Records that it is about.
        text: A sentence.
    """

    kind: str
    count: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResultColumns:
    """Result records in columns, D of them.

    Attributes:
        image_ids: Whole numbers, floats that are whole, or texts.
        category_ids: The same.
        boxes: (D, 4) as the file has them.
        scores: (D,) from 0 to 1, or in a scale of the file's own.
        has_whole_ids: Whether all ids are whole numbers of 64 bits.
        notes: What was repaired.
    """

    image_ids: list[Any]
    category_ids: list[Any]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    has_whole_ids: bool
    notes: tuple[Note, ...]


def read_columns(records: Sequence[Any], source: str) -> ResultColumns:
    """Convert result records.

    Raises:
        UserError: A record is malformed; the message names `source`, the record's number, the key and the value.
    """
    keys = field_keys(records[0] if records and isinstance(records[0], Mapping) else {})
    try:
        images, categories, boxes, scores = ([record[keys[field]] for record in records] for field in FIELDS)
        if not (_are_ids(images) and _are_ids(categories) and set(map(type, boxes)) <= {list, tuple}):
            raise ValueError
        if set(map(len, boxes)) - {4}:
            raise ValueError
        box_values, text_boxes = _numbers(list(chain.from_iterable(boxes)))
        score_values, text_scores = _numbers(scores)
        has_whole_ids = _fit_64_bits(images) and _fit_64_bits(categories)
    except (KeyError, TypeError, ValueError, OverflowError):
        for number, record in enumerate(records, start=1):
            if problem := _problem(record, keys):
                raise UserError(f"{source}: record {number} of {len(records)}: {problem}") from None
        raise
    wrote_text = "bbox" if text_boxes else "score" if text_scores else None
    boxes_found = box_values.reshape(-1, 4)
    return make_columns(keys, images, categories, boxes_found, score_values, has_whole_ids, wrote_text)


def field_keys(first: Mapping[str, Any]) -> dict[str, str]:
    """Return the key under which records like the first one have each field."""
    return {field: next((key for key in names if key in first), field) for field, names in FIELDS.items()}


def make_columns(
    keys: Mapping[str, str],
    images: list[Any],
    categories: list[Any],
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    has_whole_ids: bool,
    wrote_text: str | None = None,
) -> ResultColumns:
    """Return columns with a note for each thing that is not as COCO has it.

    Args:
        keys: Where the records have the fields.
        images: As the file has them.
        categories: The same.
        boxes: (D, 4).
        scores: (D,) as the file has them.
        has_whole_ids: Whether all ids are whole numbers of 64 bits.
        wrote_text: The field whose numbers are written as text.
    """
    count = len(images)
    notes = [
        Note(kind="other_key", count=count, text=f"{field} is read from '{key}'")
        for field, key in keys.items()
        if key != field
    ]
    if wrote_text is not None:
        text = f"{plural(count, 'record writes', 'records write')} numbers of {wrote_text} as text: read as numbers"
        notes.append(Note(kind="numbers_as_text", count=count, text=text))
    lowest, highest = (scores.min(), scores.max()) if count else (0.0, 0.0)
    if lowest >= 0 and highest <= ROUNDED_ONE:
        scores = np.minimum(scores, 1)
    elif lowest >= 0 and LEAST_PERCENT < highest <= 100 * ROUNDED_ONE:
        text = f"scores run up to {highest:g}: taken for percent and divided by 100"
        notes.append(Note(kind="scores_in_percent", count=count, text=text))
        scores = np.minimum(scores / 100, 1)
    else:
        text = (
            f"scores run from {lowest:g} to {highest:g}, not from 0 to 1: AP only needs their "
            "order, but the score of the best F1 is in the file's own scale"
        )
        notes.append(Note(kind="scores_out_of_range", count=count, text=text))
    return ResultColumns(
        image_ids=images,
        category_ids=categories,
        boxes=boxes,
        scores=scores,
        has_whole_ids=has_whole_ids,
        notes=tuple(notes),
    )


def is_id(value: Any) -> bool:
    """Return whether a value can be an id: a whole number, also as a float, or a text."""
    if isinstance(value, float):
        return value.is_integer()
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.strip() != "")


def is_finite(value: Any) -> bool:
    """Return whether a value is a number that a box may hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _are_ids(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float, str} and all(map(is_id, set(values)))


def _fit_64_bits(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int} and (not values or max(max(values), -min(values)) < 2**63)


def _numbers(values: list[Any]) -> tuple[NDArray[np.float64], bool]:
    """Return finite numbers (N,), and whether any is written as text."""
    kinds = set(map(type, values))
    if not kinds <= {int, float, str}:
        raise TypeError
    if str in kinds:
        values = [_parse(value) for value in values]
    array = np.array(values, np.float64)
    if not (np.abs(array) < LARGEST).all():
        raise ValueError
    return array, str in kinds


def _parse(value: Any) -> float:
    """Return the number that a text is: 0.9, or 90 of 90%."""
    return float(value.strip().removesuffix("%")) if isinstance(value, str) else value


def _problem(record: Any, keys: Mapping[str, str]) -> str | None:
    """Return the first mistake of a COCO result record, if there is one."""
    if not isinstance(record, Mapping):
        return f"it is {short(record, 60)}, not an object with image_id, category_id, bbox and score"
    missing = [field for field, key in keys.items() if key not in record]
    if missing:
        also = f" ({missing[0]} may also be called {', '.join(FIELDS[missing[0]][1:])})"
        hint = "; is this a file of ground truth?" if missing == ["score"] else also
        return f"it has no {' and no '.join(missing)}{hint}"
    for field in ("image_id", "category_id"):
        if not is_id(value := record[keys[field]]):
            return f"{keys[field]} is {short(value, 40)}; it must be a whole number or a name"
    bbox = record[keys["bbox"]]
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(map(_is_numeric, bbox)):
        wanted = "four finite numbers x, y, width, height in pixels, and at most the score behind them"
        return f"{keys['bbox']} is {short(bbox)}; it must be {wanted}"
    if not _is_numeric(record[keys["score"]]):
        return f"{keys['score']} is {short(record[keys['score']], 40)}; it must be a finite number"
    return None


def _is_numeric(value: Any) -> bool:
    try:
        return is_finite(_parse(value))
    except ValueError:
        return False
