"""Reading COCO annotation files, whatever is in them.

A file that is not COCO, or that could be read in two ways, is refused with one sentence. An annotation that cannot be
used is left out and counted by kind; what can be repaired is repaired and counted. Nothing is guessed in silence.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import decode_text, plural, short
from yolofleet.data.annotation import (
    BoxProblem,
    CleanBox,
    build_record,
    clean_numbers,
    is_of_shares,
    is_whole,
    refuse_shares,
)
from yolofleet.data.other_tools import other_tool
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ObjectClass
from yolofleet.data.sources import SourceDataset

LEAST_CORNER_SHARE = 0.5
"""Share of boxes that must leave their image, or contradict their area, before they are said to look like corners."""


MOST_ID_DIGITS = 20
LISTS = ("images", "annotations", "categories")


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
    document = _parse_json(data, name, problems)
    classes = _classes(document, name, problems)
    images = _images(document, name, problems)
    index_of = {identity: index for index, identity in enumerate(classes)}
    boxes = _boxes_by_image(document, name, index_of, images, problems)
    records = tuple(
        build_record(image.image_id, image.file_name, (image.width, image.height), boxes[source_id])
        for source_id, image in images.items()
    )
    return SourceDataset(tuple(classes.values()), records)


def _parse_json(data: bytes, name: str, problems: ProblemLog) -> dict[str, Any]:
    if not data.strip():
        raise AnnotationError(f"{name}: the file is empty; a COCO annotation file is needed")
    is_coco = all(data.find(b'"%s"' % key.encode()) >= 0 for key in LISTS)
    if not is_coco and (what := other_tool(name, data)) is not None:
        raise AnnotationError(f"{name}: {what}")
    try:
        text = decode_text(data)
        has_twice = any(text.count(f'"{key}"') > 1 for key in LISTS)
        document = json.loads(text, object_pairs_hook=_once if has_twice else None)
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{name}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except _TwiceError as error:
        raise AnnotationError(f"{name}: {error}") from None
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{name}: no JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise AnnotationError(f"{name}: lists nested too deeply; this is no COCO annotation file") from None
    except ValueError as error:  # an integer with thousands of digits
        raise AnnotationError(f"{name}: no usable JSON: {error}") from None
    if isinstance(document, list):
        raise AnnotationError(
            f"{name}: a bare list looks like detections (a results file); a COCO annotation file is an object with "
            "'images', 'annotations' and 'categories'"
        )
    if not isinstance(document, dict):
        raise AnnotationError(f"{name}: a COCO annotation file is an object, not {type(document).__name__}")
    if "annotations" not in document and isinstance(document.get("images"), list):
        document["annotations"] = []  # such as image_info_test-dev2017.json
        problems.add("annotations_absent", name)
    for key in LISTS:
        if not isinstance(document.get(key), list):
            seen = "is missing" if key not in document else f"is {short(document[key])}, not a list"
            raise AnnotationError(f"{name}: key '{key}' {seen}; this is no COCO annotation file")
    return document


class _TwiceError(Exception):
    """One of the lists is there twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; of a list that it holds twice, the parser would keep the last one in silence."""
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [key for key, _ in pairs]
        for key in LISTS:
            if names.count(key) > 1:
                raise _TwiceError(f"key '{key}' is there {names.count(key)} times; leave one of them")
    return document


def _classes(document: dict[str, Any], name: str, problems: ProblemLog) -> dict[int | str, ObjectClass]:
    """Return the classes by the ids of the source, in the order of these ids; other ids than numbers get 1, 2, ...."""
    categories: dict[int | str, dict[str, Any]] = {}
    for category in document["categories"]:
        identity = _identity(category.get("id")) if isinstance(category, dict) else None
        if identity is None or (isinstance(identity, int) and identity < 0):
            raise AnnotationError(f"{name}: categories: {short(category)} needs an 'id' that is a number from 0 on")
        if identity in categories:
            raise AnnotationError(
                f"{name}: categories: id {short(identity)} is given to {short(_title(categories[identity]))} and to "
                f"{short(_title(category))}; give each category its own id"
            )
        categories[identity] = category
    if not categories:
        raise AnnotationError(f"{name}: categories: the list is empty; at least one class is needed")
    used = {_identity(entry.get("category_id")) for entry in document["annotations"] if isinstance(entry, dict)}
    if (root := _root(categories)) is not None and root not in used:
        problems.add("category_unused_root", f"{name}: {short(_title(categories[root]))} (id {short(root)})")
        del categories[root]
    titles: set[str] = set()
    for identity, category in categories.items():
        if (title := _title(category)) in titles:
            problems.add("category_duplicate_name", f"{name}: {short(title)} (id {short(identity)})")
        titles.add(title)
    if all(is_whole(identity) for identity in categories):
        return {identity: ObjectClass(int(identity), _title(categories[identity])) for identity in sorted(categories)}
    problems.add("category_ids_renumbered", f"{name}: {short(list(categories))}")
    return {key: ObjectClass(number, _title(entry)) for number, (key, entry) in enumerate(categories.items(), 1)}


def _root(categories: dict[int | str, dict[str, Any]]) -> int | str | None:
    """Return the category that all others have as their supercategory, as Roboflow writes its first one."""
    above = {identity: category.get("supercategory") for identity, category in categories.items()}
    num_below = Counter(title for title in above.values() if isinstance(title, str))
    for identity, category in categories.items():
        title = _title(category)
        num_others_below = num_below[title] - (above[identity] == title)
        if above[identity] in (None, "", "none") and num_others_below == len(categories) - 1 > 0:
            return identity
    return None


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
        identity = _identity(image.get("id")) if isinstance(image, dict) else None
        if identity is None or not _is_name(file_name := image.get("file_name") or image.get("coco_url")):
            problems.add("image_malformed", f"{name}: {short(image)}")
            continue
        if identity in sound:
            raise AnnotationError(
                f"{name}: images: id {short(identity)} is given to {short(sound[identity]['file_name'])} and to "
                f"{short(file_name)}; their boxes cannot be distinguished"
            )
        if file_name in files:
            problems.add("image_duplicate_file", f"{file_name}: ids {files[file_name]}, {identity}")
        files[file_name] = identity
        sound[identity] = {**image, "file_name": file_name}
    if not sound:
        raise AnnotationError(f"{name}: images: the list holds no usable image; nothing to read")
    renumbered = not all(is_whole(identity) for identity in sound)
    result: dict[int | str, _Image] = {}
    for number, (identity, image) in enumerate(sound.items(), start=1):
        if renumbered:
            problems.add("image_id_renumbered", f"{name}: id {identity!r} becomes {number}")
        width, height = _whole(image.get("width")), _whole(image.get("height"))
        if not (is_whole(width) and is_whole(height)) or width <= 0 or height <= 0:
            problems.add("image_size_missing", f"{image['file_name']}: width {short(width)}, height {short(height)}")
            width = height = 0
        result[identity] = _Image(number if renumbered else int(identity), image["file_name"], int(width), int(height))
    return result


def _boxes_by_image(
    document: dict[str, Any],
    name: str,
    index_of: dict[int | str, int],
    images: dict[int | str, _Image],
    problems: ProblemLog,
) -> dict[int | str, list[tuple[int, CleanBox]]]:
    boxes: dict[int | str, list[tuple[int, CleanBox]]] = {identity: [] for identity in images}
    seen_ids: set[Any] = set()
    seen_boxes: set[Any] = set()
    num_suspicious = num_boxes = num_of_shares = 0
    are_numbers = all(isinstance(known, int) for known in index_of)
    for annotation in document["annotations"]:
        image_id = _identity(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if image_id is None:
            problems.add("annotation_malformed", f"{name}: {short(annotation)}")
            continue
        if "segments_info" in annotation:
            problems.add("annotation_panoptic", _where(annotation))
            continue
        image = images.get(image_id)
        if image is None:
            problems.add("annotation_without_image", _where(annotation))
            continue
        if (own_id := _identity(annotation.get("id"))) is not None:
            if own_id in seen_ids:
                problems.add("annotation_duplicate_id", _where(annotation))
            seen_ids.add(own_id)
        try:
            class_index = _class_index(annotation, index_of, are_numbers)
            clean = clean_numbers(annotation)
        except BoxProblem as problem:
            problems.add(problem.kind, f"{_where(annotation, image)}: {problem}")
            continue
        num_boxes += 1
        num_suspicious += _looks_like_corners(clean, image)
        num_of_shares += is_of_shares(clean.box)
        identity = (image_id, class_index, struct.pack("4d", *clean.box))  # floats can be made to collide
        if identity in seen_boxes:
            problems.add("annotation_duplicate_box", _where(annotation, image))
        seen_boxes.add(identity)
        for repair in clean.repairs:
            problems.add(repair, _where(annotation, image))
        boxes[image_id].append((class_index, clean))
    refuse_shares(num_of_shares, num_boxes, name)
    if num_suspicious and num_suspicious >= LEAST_CORNER_SHARE * num_boxes:
        problems.add("boxes_look_like_corners", f"{name}: {num_suspicious} of {plural(num_boxes, 'box')}")
    return boxes


def _where(annotation: dict[str, Any], image: _Image | None = None) -> str:
    file_name = "" if image is None else f" ({image.file_name})"
    return f"annotation {short(annotation.get('id'))} of image {short(annotation['image_id'])}{file_name}"


def _class_index(annotation: dict[str, Any], index_of: dict[int | str, int], are_numbers: bool) -> int:
    category = annotation.get("category_id")
    if category is None:
        raise BoxProblem("category_missing", "no category_id")
    identity = _identity(category)
    if identity is None or (isinstance(identity, str) and are_numbers):
        raise BoxProblem("category_malformed", f"category_id {short(category)}")
    if identity not in index_of:
        raise BoxProblem("category_unknown", f"category_id {short(category)} is not in the list of categories")
    return index_of[identity]


def _looks_like_corners(clean: CleanBox, image: _Image) -> bool:
    """Return whether a box makes more sense as x1, y1, x2, y2: then its area is that of the smaller rectangle."""
    x, y, width, height = clean.box
    if not (width > x >= 0 and height > y >= 0):
        return False
    as_corners = (width - x) * (height - y)
    fits_area = "area_missing" not in clean.repairs and abs(clean.area - as_corners) <= 0.01 * as_corners
    leaves = image.width > 0 and (x + width > image.width + 1 or y + height > image.height + 1)
    return (fits_area and as_corners < width * height) or leaves


def _identity(value: Any) -> int | str | None:
    """Return an id in the form that ids are compared in: 1, 1.0 and "1" are one; None for what is no id."""
    value = _whole(value)
    if isinstance(value, str) and value:
        is_plain = len(value) <= MOST_ID_DIGITS and value.isascii() and value.removeprefix("-").isdecimal()
        return int(value) if is_plain and str(int(value)) == value else value
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64 else None


def _whole(value: Any) -> Any:
    """Return a float that is a whole number as one; pandas writes columns with gaps as floats."""
    return int(value) if isinstance(value, float) and abs(value) < 2**53 and value == int(value) else value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value and value == _clean_text(value)


def _title(category: dict[str, Any]) -> str:
    title = category.get("name", category["id"])
    return _clean_text(title if isinstance(title, str) else short(title))


def _clean_text(text: str) -> str:
    """Return text that can be written down: JSON allows halves of surrogate pairs, UTF-8 does not."""
    return text.encode(errors="replace").decode()
