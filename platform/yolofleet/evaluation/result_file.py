"""Result files of any tool, brought into the terms of a ground truth.

What can mean one thing only is repaired and counted. What probably means something else is refused with the option that
says so, or is evaluated as it is with a warning: a wrong format must not end as an AP of 0 without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.core.redaction import redact
from yolofleet.core.text import and_more, plural, short
from yolofleet.evaluation.average_precision import AveragePrecision
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.ground_truth import Entries, GroundTruth
from yolofleet.evaluation.id_index import AMBIGUOUS, Found, IdIndex
from yolofleet.evaluation.json_file import parse_json, read_packed
from yolofleet.evaluation.readings import (
    AS_IS,
    BOX_FORMATS,
    Floats,
    Integers,
    Trial,
    convert_boxes,
    id_readings,
    image_sizes,
)
from yolofleet.evaluation.result_forms import ResultRecords, names_beside, unwrap
from yolofleet.evaluation.result_records import Note, ResultColumns, read_columns
from yolofleet.evaluation.uniform_records import read_uniform

MOST_NAMED = 5
PLAUSIBLE_AP50 = 0.1
"""From here on a file whose ids are all known is not doubted."""
CERTAIN_GAIN, CERTAIN_RATIO = 0.15, 3.0
"""A reading is certain where it raises AP50 by this much and to this multiple, and likely at the multiple alone."""
LIKELY_GAIN = 0.02
LOW_AP50 = 0.005
LEAST_OUTSIDE = 0.2
"""Share of boxes that must leave their image before their format is doubted."""
SLACK_PIXELS = 2.0
LARGEST_SHARE = 1.1
"""Shares of an image may pass 1 a little where a box leaves it; boxes in pixels are larger."""
PLURALS = {"image_id": "image ids", "category_id": "category ids"}
LIKELY_CAUSE = {
    "image_id": "probably they belong to a larger set of images",
    "category_id": "probably the model knows more classes",
}


def read_results(path: Path, truth: GroundTruth, box_format: str | None = None) -> tuple[Detections, list[Note]]:
    """Read a result file.

    Args:
        path: COCO result records, in any of the forms of `read_json`, `unwrap` and `read_columns`.
        truth: What its ids and names refer to.
        box_format: One of `BOX_FORMATS`; None: what the names of a box's numbers say, or pixels x, y, width, height,
            unless that cannot be.

    Returns:
        The detections with the ids of the ground truth, and what was repaired, left out, or is doubtful.

    Raises:
        UserError: The file cannot be read, a record is malformed, nothing refers to the ground truth, or the boxes have
            another format.
    """
    data = read_packed(path)
    found, listed = ResultRecords(records=(), around={}), {}
    if (columns := read_uniform(data)) is None:
        found = unwrap(parse_json(data, path), str(path))
        columns = read_columns(found.records, str(path))
        listed = {**names_beside(found.records, columns), **found.around}
    count = len(columns.image_ids)
    notes = [*truth.notes, *found.notes, *columns.notes]
    if not count:
        notes.append(Note(kind="no_detections", count=0, text=f"{path} holds no detections"))
    images = _match(columns.image_ids, truth.images, listed.get("images"), "image_id", path, notes)
    categories = _match(columns.category_ids, truth.categories, listed.get("categories"), "category_id", path, notes)
    sizes = image_sizes(truth)
    default = box_format or found.box_format or "xywh"
    formats = [box_format] if box_format else [default, *(name for name in BOX_FORMATS if name != default)]
    images, categories = _decide(path, truth, columns, sizes, images, categories, formats, notes)
    known = np.ones(count, bool)
    for values, entries, rows, key in (
        (columns.image_ids, truth.images, images, "image_id"),
        (columns.category_ids, truth.categories, categories, "category_id"),
    ):
        _note_unknown(values, entries, rows, key, path, notes)
        known &= rows >= 0
    boxes = convert_boxes(columns.boxes[known], default, sizes[images[known]])
    if np.isnan(boxes).any():
        raise UserError(f"--boxes {default}: the ground truth does not list width and height of all images")
    detections = Detections(
        image_ids=truth.images.numbers[images[known]],
        category_ids=truth.categories.numbers[categories[known]],
        boxes=boxes,
        scores=columns.scores[known],
    )
    if flat := int((boxes[:, 2:] <= 0).any(axis=1).sum()):
        text = f"{plural(flat, 'box has', 'boxes have')} no width or no height"
        notes.append(Note(kind="boxes_without_area", count=flat, text=text))
    return detections, notes


def note_low_ap50(result: AveragePrecision) -> list[Note]:
    """Return a note where hardly any detection lies on an object of its class."""
    ap50 = result.figures["AP50"]
    if ap50 is None or ap50 >= LOW_AP50 or not result.num_detections:
        return []
    text = (
        f"AP50 is {ap50:.4f}: hardly any box lies on an object of its class, and no other reading of boxes or ids is "
        f"clearly better. Are the detections of this dataset, and are boxes in pixels of the original images?"
    )
    return [Note(kind="ap50_is_low", count=result.num_detections, text=text)]


def _match(values: list[Any], entries: Entries, listed: Any, key: str, path: Path, notes: list[Note]) -> Integers:
    """Return the entry of each id, by the names that the result file itself lists for its ids, or by the ids."""
    found = entries.index.find(values)
    named = _find_by_list(values, entries, listed, "file_name" if key == "image_id" else "name")
    if named is not None and found.num_known > named.num_known and (named.positions == AMBIGUOUS).any():
        named = None  # several entries have these names, and the ids tell them apart
    if named is not None and named.num_known:
        if (changed := int((named.positions != found.positions).sum())) or found.way != "id":
            records = plural(changed or len(values), "record")
            text = f"{PLURALS[key]} of {records}: matched by the names that the file itself gives them"
            notes.append(Note(kind=f"{key}_by_own_list", count=changed or len(values), text=text))
        found = named
    elif named is not None and found.num_known:
        text = (
            f"the names that the file itself gives its {PLURALS[key]} are not those of the ground truth: the ids are "
            "taken as they are"
        )
        notes.append(Note(kind=f"{key}_names_differ", count=len(values), text=text))
    else:
        kinds = set(map(type, entries.index.ids)) if found.way == "id" else set()
        pairs = zip(values, (found.positions >= 0).tolist(), strict=True) if set(map(type, values)) - kinds else ()
        if others := [value for value, is_known in pairs if is_known and type(value) not in kinds]:
            text = (
                f"{plural(len(others), 'record writes', 'records write')} {key} in another form than the ground truth "
                f"({short(others[0], 60)}): matched {'by name' if found.way == 'name' else 'as whole numbers'}"
            )
            notes.append(Note(kind=f"{key}_matched", count=len(others), text=text))
    if found.clash:
        first, second, position = found.clash
        raise UserError(
            f"{path}: {key} {first!r} and {second!r} both match '{entries.index.names[position]}' of the ground truth; "
            "write ids that tell them apart"
        )
    return found.positions


def _find_by_list(values: list[Any], entries: Entries, listed: Any, name_key: str) -> Found | None:
    """Return the entries of the names that a result file lists for its ids; None where it lists none."""
    if not isinstance(listed, list) or not listed or not values or not any(entries.index.names):
        return None
    if not all(isinstance(entry, dict) and isinstance(entry.get(name_key), str) and "id" in entry for entry in listed):
        return None
    own = IdIndex([entry["id"] for entry in listed], [entry[name_key] for entry in listed])
    rows = own.find(values, ("id", "number")).positions
    return entries.index.find([own.names[row] if row >= 0 else None for row in rows], ("name",))


def _decide(
    path: Path,
    truth: GroundTruth,
    columns: ResultColumns,
    sizes: Floats,
    images: Integers,
    categories: Integers,
    formats: Sequence[str],
    notes: list[Note],
) -> tuple[Integers, Integers]:
    """Return the positions of images and categories in the reading that fits the ground truth best.

    Boxes are of the first of the formats; the others are tried.

    Raises:
        UserError: The boxes have another format than the first one.
    """
    boxes, default, is_sure = columns.boxes, formats[0], len(formats) == 1
    may_be_shares = len(boxes) > 0 and not is_sure and not BOX_FORMATS[default].normalized
    look_like_shares = may_be_shares and bool((np.abs(boxes) <= LARGEST_SHARE).all(axis=1).mean() > 0.99)
    outside = 0.0
    if not is_sure and not look_like_shares:
        known = images >= 0
        pixels = convert_boxes(boxes[known], default, sizes[images[known]])
        outside = _share_outside(pixels, sizes[images[known]])
    trial = Trial(truth, columns.scores, sizes)
    are_known = bool((images >= 0).all() and (categories >= 0).all())
    if trial.is_possible and not (
        are_known
        and outside < LEAST_OUTSIDE
        and not look_like_shares
        and trial.ap50(images, categories, boxes, default) >= PLAUSIBLE_AP50
    ):
        # Where boxes lie shows what they and the image ids mean, whatever the classes are.
        readings = id_readings(columns.image_ids, truth.images, images)
        gains = {
            (words, name): trial.ap50(rows, categories, boxes, name, class_agnostic=True)
            for name in formats
            for words, rows in readings.items()
        }
        words, name = max(gains, key=lambda reading: gains[reading])
        if name != default and _is_likely(gains[words, default], gains[words, name]):
            said = (
                f"boxes look like {BOX_FORMATS[name].meaning}: read so, AP50 without regard to classes is "
                f"{gains[words, name]:.2f}, and {gains[words, default]:.2f} as {BOX_FORMATS[default].meaning}"
            )
            if look_like_shares or _is_certain(gains[words, default], gains[words, name]):
                raise UserError(f"{path}: {said}; add --boxes {name}, or --boxes {default} if they are not")
            notes.append(Note(kind="boxes_doubtful", count=len(boxes), text=f"{said}; if they are, add --boxes {name}"))
        words = max(readings, key=lambda words: gains[words, default])
        values = {words: gains[words, default] for words in readings}
        images = _take("image_id", readings, values, len(boxes), notes)
        readings = id_readings(columns.category_ids, truth.categories, categories)
        values = {words: trial.ap50(images, rows, boxes, default) for words, rows in readings.items()}
        categories = _take("category_id", readings, values, len(boxes), notes)
    if look_like_shares:
        raise UserError(
            f"{path}: boxes look like shares of the image: their numbers are from 0 to about 1; add --boxes with "
            f"their format: {', '.join(name for name, entry in BOX_FORMATS.items() if entry.normalized)}"
        )
    if outside >= LEAST_OUTSIDE and not any(note.kind == "boxes_doubtful" for note in notes):
        text = (
            f"{outside:.0%} of the boxes reach out of their images: likely they are corners x1, y1, x2, y2 (--boxes "
            "xyxy), or in pixels of resized images"
        )
        notes.append(Note(kind="boxes_outside", count=round(outside * len(boxes)), text=text))
    return images, categories


def _share_outside(boxes: Floats, sizes: Floats) -> float:
    """Return the share of boxes (D, 4) that leave their images of sizes (D, 2); unknown sizes are NaN."""
    leave = (boxes[:, :2] + boxes[:, 2:] > sizes + SLACK_PIXELS).any(axis=1) | (boxes[:, :2] < -SLACK_PIXELS).any(
        axis=1
    )
    return float(leave.mean()) if len(boxes) else 0.0


def _is_likely(before: float, after: float) -> bool:
    return after >= before + LIKELY_GAIN and after >= before * CERTAIN_RATIO


def _is_certain(before: float, after: float) -> bool:
    return after >= before + CERTAIN_GAIN and after >= before * CERTAIN_RATIO


def _take(
    key: str, readings: Mapping[str, Integers], ap50: Mapping[str, float], count: int, notes: list[Note]
) -> Integers:
    """Return the reading of ids that is taken: as they are, unless some are unknown so and another one is certain."""
    words = max(readings, key=lambda words: ap50[words])
    if words == AS_IS or not _is_likely(ap50[AS_IS], ap50[words]):
        return readings[AS_IS]
    measured = f"AP50 is {ap50[words]:.2f} so, and {ap50[AS_IS]:.2f} as ids"
    if _is_certain(ap50[AS_IS], ap50[words]) and (readings[AS_IS] < 0).any():
        text = f"{PLURALS[key]} of {plural(count, 'record')}: read as {words} of the ground truth ({measured})"
        notes.append(Note(kind=f"{key}_reinterpreted", count=count, text=text))
        return readings[words]
    text = f"{PLURALS[key]} look like {words} of the ground truth ({measured}); if they are, write the ids instead"
    notes.append(Note(kind=f"{key}_doubtful", count=count, text=text))
    return readings[AS_IS]


def _note_unknown(
    values: Sequence[Any], entries: Entries, rows: Integers, key: str, path: Path, notes: list[Note]
) -> None:
    """Count and name ids that the ground truth does not have.

    Raises:
        UserError: It has none of them.
    """
    unknown = np.flatnonzero(rows < 0)
    if not len(unknown):
        return
    distinct = list(dict.fromkeys(values[row] for row in unknown.tolist()))
    named = and_more([f"{redact(repr(value)):.40}" for value in distinct], MOST_NAMED)
    pairs = zip(entries.index.ids, entries.index.names, strict=True)
    known = and_more([f"{redact(repr(number)):.40}" + (f" ({name})" if name else "") for number, name in pairs], 3)
    if len(unknown) == len(rows):
        raise UserError(
            f"{path}: no {key} of its {plural(len(rows), 'record')} is in the ground truth: it has {known or 'none'}, "
            f"the file has {named}; are the detections of another dataset?"
        )
    text = (
        f"left out: {len(unknown):,} of {plural(len(rows), 'detection')}; the ground truth does not have {key} {named} "
        f"(it has {known}); {LIKELY_CAUSE[key]}"
    )
    notes.append(Note(kind=f"{key}_unknown", count=len(unknown), text=text))
