"""The forms in which tools write detections, brought into a list of records with a box of four numbers each.

Detections may lie under a key, image by image, under the names of the images, or in columns; boxes may have a name for
each number, or the score as the fifth. Only what can mean one thing is read; the first record shows the form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.evaluation.result_records import FIELDS, Note, ResultColumns, is_finite

WRAPPERS = ("annotations", "predictions", "results", "detections", "instances", "objects", "bbox")
COLUMNS = {
    "bbox": ("boxes", "bboxes", "pred_boxes"),
    "category_id": ("labels", "classes", "class_ids", "category_ids", "pred_classes"),
    "score": ("scores", "confidences"),
}
"""The lists in which torchvision, MMDetection and others write the detections of an image, under the field that each
is of; the first two are needed."""
SHARES_KEY = "relative_coordinates"
BOX_KEYS = (*FIELDS["bbox"], SHARES_KEY)
BOX_PARTS: Mapping[tuple[str, ...], str] = {
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("left", "top", "right", "bottom"): "xyxy",
    ("left", "top", "width", "height"): "xywh",
    ("center_x", "center_y", "width", "height"): "cxcywh",
    ("x_center", "y_center", "width", "height"): "cxcywh",
    ("cx", "cy", "w", "h"): "cxcywh",
    ("x", "y", "w", "h"): "xywh",
    ("x", "y", "width", "height"): "xywh",
}
"""Names of the four numbers of a box, and the format that they say; the first that are all there count."""
OF_ROBOFLOW = ("class", "confidence")
"""Beside these, x and y are the centre."""
NAMES_BESIDE = {
    "image_id": ("images", "file_name", ("file_name", "filename", "image_name", "image")),
    "category_id": ("categories", "name", ("category_name", "class_name", "name", "category", "label", "class")),
}
"""Of each id: COCO's list that names it, the key of the name there, and where a record has the name beside the id."""
SAME_SCORE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRecords:
    """What a result file holds.

    Attributes:
        records: For `read_columns`.
        around: The object around them; empty where there is none.
        box_format: What the names of a box's numbers say; one of `BOX_FORMATS`, None where they have no names.
        notes: In which other form than COCO's they were.
    """

    records: Sequence[Any]
    around: Mapping[str, Any]
    box_format: str | None = None
    notes: tuple[Note, ...] = ()


def unwrap(document: Any, source: str) -> ResultRecords:
    """Return the records of a result file.

    Raises:
        UserError: The document holds no list of records, or columns that are not equally long.
    """
    around = document if isinstance(document, dict) else {}
    inner = document
    forms: list[str] = []
    while isinstance(inner, dict):
        if _names_image(inner) and (_is_record(inner) or _is_in_columns(inner)):
            inner = [inner]  # one record alone, or one image
            break
        key = next((key for key in WRAPPERS if isinstance(inner.get(key), list | dict)), None)
        if key is None and (images := _by_name(inner)):
            forms.append("images are named by the keys around their detections")
            inner = images
            break
        if key is None:
            raise UserError(
                f"{source} is not a COCO result file: it holds an object with {', '.join(list(inner)[:6]) or 'no keys'}"
                f", not a list of records, nor one under {', '.join(WRAPPERS)}, nor lists under the names of images"
            )
        outer, inner = inner, inner[key]
        if isinstance(inner, list) and _names_image(outer) and not any(map(_names_image, inner)):
            inner = [outer]  # one image alone, with its detections
    if not isinstance(inner, list):
        raise UserError(
            f"{source} is not a COCO result file: it holds {type(document).__name__}, not a list of records"
        )
    records: Sequence[Any] = inner
    first = inner[0] if inner and isinstance(inner[0], dict) else {}
    if (nested := _nested(first)) and not _is_record(first):
        records = list(_flatten(inner, min(nested)))
    elif not _is_record(first) and _is_in_columns(first):
        forms.append(f"each image has lists: {', '.join(_columns(first).values())}")
        records = list(_spread(inner, source))
    records, box_format, form = _with_boxes(records)
    notes = [Note(kind="other_form", count=len(records), text=text) for text in (*forms, *form)]
    return ResultRecords(records=records, around=around, box_format=box_format, notes=tuple(notes))


def names_beside(records: Sequence[Any], columns: ResultColumns) -> dict[str, list[dict[str, Any]]]:
    """Return the names that records have beside their ids, as the lists of images and categories of a COCO file.

    A list is left out where an id has two names.
    """
    first = records[0] if records and isinstance(records[0], Mapping) else {}
    lists = {}
    for field, ids in (("image_id", columns.image_ids), ("category_id", columns.category_ids)):
        list_key, name_key, keys = NAMES_BESIDE[field]
        own = next((key for key in FIELDS[field] if key in first), field)
        key = next((key for key in keys if key != own and isinstance(first.get(key), str)), None)
        if key is None:
            continue
        names: dict[Any, str] = {}
        given = [record.get(key) for record in records]
        pairs = zip(ids, given, strict=True)
        if all(isinstance(name, str) and names.setdefault(number, name) == name for number, name in pairs):
            lists[list_key] = [{"id": number, name_key: name} for number, name in names.items()]
    return lists


def _names_image(entry: Any) -> bool:
    return isinstance(entry, dict) and any(key in entry for key in FIELDS["image_id"])


def _nested(image: Mapping[str, Any]) -> list[str]:
    """Return the keys under which an image may hold its detections."""
    return [key for key in WRAPPERS if isinstance(image.get(key), list) and key not in FIELDS["bbox"]]


def _is_record(entry: Mapping[str, Any]) -> bool:
    return any(key in entry for key in BOX_KEYS) or (not _nested(entry) and _box_parts(entry) is not None)


def _by_name(document: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the images of an object that has their detections under their names; None of any other object."""
    images: list[dict[str, Any]] = []
    for name, value in document.items():
        if not isinstance(value, list | dict):
            return None
        images.append({"image_id": name, **(value if isinstance(value, dict) else {"predictions": value})})
    return sorted(images, key=lambda image: not _holds_boxes(image)) if any(map(_holds_boxes, images)) else None


def _holds_boxes(image: Mapping[str, Any]) -> bool:
    firsts = [image[key][0] for key in _nested(image) if image[key]]
    return _is_in_columns(image) or any(isinstance(entry, dict) and _is_record(entry) for entry in firsts)


def _flatten(images: list[Any], key: str) -> Iterator[Any]:
    """Yield the detections that each image holds under a key, with the image's other keys."""
    for image in images:
        if not isinstance(image, dict) or not isinstance(image.get(key), list):
            yield image  # it is refused as a record
            continue
        shared = {name: value for name, value in image.items() if name != key}
        yield from ({**shared, **entry} if isinstance(entry, dict) else entry for entry in image[key])


def _columns(image: Mapping[str, Any]) -> dict[str, str]:
    """Return the key of each list that an image holds for all its detections."""
    found = {
        field: next((key for key in keys if isinstance(image.get(key), list)), None) for field, keys in COLUMNS.items()
    }
    return {field: key for field, key in found.items() if key is not None}


def _is_in_columns(image: Mapping[str, Any]) -> bool:
    return _columns(image).keys() >= {"bbox", "category_id"}


def _spread(images: list[Any], source: str) -> Iterator[Any]:
    """Yield the detections of images that hold a list of boxes, one of classes and so on.

    Raises:
        UserError: Lists of an image are not equally long.
    """
    for number, image in enumerate(images, start=1):
        if not isinstance(image, dict) or not _is_in_columns(image):
            yield image  # it is refused as a record
            continue
        columns = _columns(image)
        lengths = {key: len(image[key]) for key in columns.values()}
        if len(set(lengths.values())) > 1:
            seen = ", ".join(f"{plural(length, 'entry', 'entries')} in {key}" for key, length in lengths.items())
            raise UserError(f"{source}: image {number} of {len(images)}: {seen}; each detection needs one in each")
        shared = {key: value for key, value in image.items() if not isinstance(value, list)}
        for values in zip(*(image[key] for key in columns.values()), strict=True):
            yield {**shared, **dict(zip(columns, values, strict=True))}


def _box_parts(record: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]] | None:
    """Return where a record has its box, and the names of its numbers; None where it has none.

    Where is a key, or None where the numbers are keys of the record itself; a list has no names.
    """
    key = next((name for name in BOX_KEYS if name in record), None)
    box = record if key is None else record[key]
    if key is not None and not isinstance(box, Mapping):
        return key, ()
    parts = next((parts for parts in BOX_PARTS if all(part in box for part in parts)), None)
    return None if parts is None else (key, parts)


def _with_boxes(records: Sequence[Any]) -> tuple[Sequence[Any], str | None, list[str]]:
    """Return records that have four numbers under "bbox", the format that names gave them, and the form in words.

    A record in another form than the first one stays as it is, and is refused where records are read.
    """
    first = records[0] if records and isinstance(records[0], Mapping) else {}
    found = _box_parts(first)
    if found is None:
        return records, None, []
    key, parts = found
    if not parts:
        box = first[key]
        if not isinstance(box, list) or len(box) != 5:
            return records, None, []
        return [_without_fifth(record, key or "") for record in records], None, [f"{key} ends with the score"]
    box_format = BOX_PARTS[parts]
    if parts[:2] == ("x", "y") and all(name in first for name in OF_ROBOFLOW):
        box_format = "cxcywh"
    if key == SHARES_KEY:
        box_format += "n"
    named = [_with_list(record, key, parts) for record in records]
    return named, box_format, [f"bbox is read from {', '.join(parts)}, as {box_format}"]


def _with_list(record: Any, key: str | None, parts: tuple[str, ...]) -> Any:
    box = record if key is None or not isinstance(record, Mapping) else record.get(key)
    if not isinstance(box, Mapping) or any(part not in box for part in parts):
        return record
    return {**record, "bbox": [box[part] for part in parts]}


def _without_fifth(record: Any, key: str) -> Any:
    box = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(box, list) or len(box) != 5 or not is_finite(box[4]):
        return record
    score_key = next((name for name in FIELDS["score"] if name in record), "score")
    score = record.get(score_key, box[4])
    is_same = is_finite(score) and abs(score - box[4]) <= SAME_SCORE
    return {**record, key: box[:4], score_key: score} if is_same else record
