"""Reading COCO annotation files, whatever is in them.

A file that is not COCO, or that could be read in two ways, is refused with one sentence. An annotation that cannot be
used is left out and counted by kind; what can be repaired is repaired and counted. Nothing is guessed in silence.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import short
from yolofleet.data.box_checks import BoxProblem, CleanBox, build_record, clean_numbers, is_whole
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ObjectClass
from yolofleet.data.sources import SourceDataset

LEAST_CORNER_SHARE = 0.5
"""Share of boxes that must leave their image, or contradict their area, before they are said to look like corners."""


class AnnotationError(UserError):
    """An annotation file cannot be used at all."""


def parse_coco(data: bytes, name: str, problems: ProblemLog) -> SourceDataset:
    """Read and check the bytes of a COCO "instances" file.

    Args:
        data: JSON in UTF-8, with or without byte order mark.
        name: Name of the file in messages.
        problems: Where problems are counted.

    Raises:
        AnnotationError: It is no COCO file, it is ambiguous, or it lists no image.
    """
    document = _parse_json(data, name)
    classes = _classes(document, name, problems)
    images = _images(document, name, problems)
    boxes = _boxes_by_image(document, name, classes, images, problems)
    records = tuple(
        build_record(image.image_id, image.file_name, (image.width, image.height), boxes[source_id])
        for source_id, image in images.items()
    )
    return SourceDataset(classes, records)


def _parse_json(data: bytes, name: str) -> dict[str, Any]:
    if not data.strip():
        raise AnnotationError(f"{name}: the file is empty; a COCO annotation file is needed")
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{name}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{name}: no JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise AnnotationError(f"{name}: lists nested too deeply; this is no COCO annotation file") from None
    except ValueError as error:  # an integer with thousands of digits
        raise AnnotationError(f"{name}: no usable JSON: {error}") from None
    if isinstance(document, list):
        raise AnnotationError(
            f"{name}: a bare list looks like predictions (a results file); a COCO annotation file is an object with "
            "'images', 'annotations' and 'categories'"
        )
    if not isinstance(document, dict):
        raise AnnotationError(f"{name}: a COCO annotation file is an object, not {type(document).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            seen = "is missing" if key not in document else f"is {short(document[key])}, not a list"
            raise AnnotationError(f"{name}: key '{key}' {seen}; this is no COCO annotation file")
    return document


def _classes(document: dict[str, Any], name: str, problems: ProblemLog) -> tuple[ObjectClass, ...]:
    classes: dict[int, ObjectClass] = {}
    titles: set[str] = set()
    for category in document["categories"]:
        if not isinstance(category, dict) or not is_whole(category.get("id")) or category["id"] < 0:
            raise AnnotationError(f"{name}: categories: {short(category)} needs an 'id' that is a number from 0 on")
        identity, title = category["id"], _title(category)
        if identity in classes:
            raise AnnotationError(
                f"{name}: categories: id {identity} is given to {short(classes[identity].name)} and to {short(title)}; "
                "give each category its own id"
            )
        if title in titles:
            problems.add("category_duplicate_name", f"{name}: {short(title)} (id {identity})")
        titles.add(title)
        classes[identity] = ObjectClass(identity, title)
    if not classes:
        raise AnnotationError(f"{name}: categories: the list is empty; at least one class is needed")
    return tuple(classes[identity] for identity in sorted(classes))


@dataclass(frozen=True)
class _Image:
    image_id: int
    file_name: str
    width: int
    height: int


def _images(document: dict[str, Any], name: str, problems: ProblemLog) -> dict[int | str, _Image]:
    """Return the images by the ids of the source, in the order of the file."""
    sound: dict[int | str, dict[str, Any]] = {}
    files: dict[str, Any] = {}
    for image in document["images"]:
        if not isinstance(image, dict) or not _is_identity(image.get("id")) or not _is_name(image.get("file_name")):
            problems.add("image_malformed", f"{name}: {short(image)}")
            continue
        if image["id"] in sound:
            raise AnnotationError(
                f"{name}: images: id {short(image['id'])} is given to {short(sound[image['id']]['file_name'])} and to "
                f"{short(image['file_name'])}; their boxes cannot be distinguished"
            )
        file_name = image["file_name"]
        if file_name in files:
            problems.add("image_duplicate_file", f"{file_name}: ids {files[file_name]}, {image['id']}")
        files[file_name] = image["id"]
        sound[image["id"]] = image
    if not sound:
        raise AnnotationError(f"{name}: images: the list holds no usable image; nothing to read")
    renumbered = not all(is_whole(identity) for identity in sound)
    result: dict[int | str, _Image] = {}
    for number, (identity, image) in enumerate(sound.items(), start=1):
        if renumbered:
            problems.add("image_id_renumbered", f"{name}: id {identity!r} becomes {number}")
        width, height = image.get("width"), image.get("height")
        if not (is_whole(width) and is_whole(height)) or width <= 0 or height <= 0:
            problems.add("image_size_missing", f"{image['file_name']}: width {short(width)}, height {short(height)}")
            width = height = 0
        result[identity] = _Image(number if renumbered else int(identity), image["file_name"], int(width), int(height))
    return result


def _boxes_by_image(
    document: dict[str, Any],
    name: str,
    classes: tuple[ObjectClass, ...],
    images: dict[int | str, _Image],
    problems: ProblemLog,
) -> dict[int | str, list[tuple[int, CleanBox]]]:
    index_of = {entry.id: index for index, entry in enumerate(classes)}
    boxes: dict[int | str, list[tuple[int, CleanBox]]] = {identity: [] for identity in images}
    seen_ids: set[Any] = set()
    seen_boxes: set[Any] = set()
    num_suspicious = num_boxes = 0
    for annotation in document["annotations"]:
        if not isinstance(annotation, dict) or not _is_identity(annotation.get("image_id")):
            problems.add("annotation_malformed", f"{name}: {short(annotation)}")
            continue
        image = images.get(annotation["image_id"])
        if image is None:
            problems.add("annotation_without_image", _where(annotation))
            continue
        if _is_identity(annotation.get("id")):
            if annotation["id"] in seen_ids:
                problems.add("annotation_duplicate_id", _where(annotation))
            seen_ids.add(annotation["id"])
        try:
            class_index = _class_index(annotation, index_of)
            clean = clean_numbers(annotation)
        except BoxProblem as problem:
            problems.add(problem.kind, f"{_where(annotation, image)}: {problem}")
            continue
        num_boxes += 1
        num_suspicious += _looks_like_corners(clean, image)
        identity = (annotation["image_id"], class_index, struct.pack("4d", *clean.box))  # floats can be made to collide
        if identity in seen_boxes:
            problems.add("annotation_duplicate_box", _where(annotation, image))
        seen_boxes.add(identity)
        for repair in clean.repairs:
            problems.add(repair, _where(annotation, image))
        boxes[annotation["image_id"]].append((class_index, clean))
    if num_suspicious and num_suspicious >= LEAST_CORNER_SHARE * num_boxes:
        problems.add("boxes_look_like_corners", f"{name}: {num_suspicious} of {num_boxes} boxes")
    return boxes


def _where(annotation: dict[str, Any], image: _Image | None = None) -> str:
    file_name = "" if image is None else f" ({image.file_name})"
    return f"annotation {short(annotation.get('id'))} of image {short(annotation['image_id'])}{file_name}"


def _class_index(annotation: dict[str, Any], index_of: dict[int, int]) -> int:
    category = annotation.get("category_id")
    if category is None:
        raise BoxProblem("category_missing", "no category_id")
    if not is_whole(category):
        raise BoxProblem("category_malformed", f"category_id {short(category)}")
    if category not in index_of:
        raise BoxProblem("category_unknown", f"category_id {category} is not in the list of categories")
    return index_of[category]


def _looks_like_corners(clean: CleanBox, image: _Image) -> bool:
    """Return whether a box makes more sense as x1, y1, x2, y2: then its area is that of the smaller rectangle."""
    x, y, width, height = clean.box
    if not (width > x >= 0 and height > y >= 0):
        return False
    as_corners = (width - x) * (height - y)
    fits_area = "area_missing" not in clean.repairs and abs(clean.area - as_corners) <= 0.01 * as_corners
    leaves = image.width > 0 and (x + width > image.width + 1 or y + height > image.height + 1)
    return (fits_area and as_corners < width * height) or leaves


def _is_identity(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, str) and value != "")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value and value == _clean_text(value)


def _title(category: dict[str, Any]) -> str:
    title = category.get("name", category["id"])
    return _clean_text(title if isinstance(title, str) else short(title))


def _clean_text(text: str) -> str:
    """Return text that can be written down: JSON allows halves of surrogate pairs, UTF-8 does not."""
    return text.encode(errors="replace").decode()
