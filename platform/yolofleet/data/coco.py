"""Reading COCO annotation files, whatever is in them.

A file that is not COCO, or that could be read in two ways, is refused with one sentence. An annotation that cannot be
used is left out and counted by kind; what can be repaired is repaired and counted. Nothing is guessed in silence.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from yolofleet.core.text import decode_text, short
from yolofleet.data.annotation import AnnotationError, BoxProblem, CleanBox, build_record, clean_numbers, mask_size
from yolofleet.data.box_meaning import BoxMeaning
from yolofleet.data.coco_categories import classes_of, clean_text, read_categories, title_of
from yolofleet.data.file_finder import without_type
from yolofleet.data.json_values import is_whole
from yolofleet.data.other_tools import other_tool
from yolofleet.data.problems import ProblemLog
from yolofleet.data.source_ids import FoundIds, Identity, find_ids, identity_of
from yolofleet.data.sources import SourceDataset

LISTS = ("images", "annotations", "categories")


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
    categories = read_categories(document["categories"], name)
    titles = {identity: title_of(category) for identity, category in categories.items()}
    category_ids = _column(document, "category_id", name, titles, problems)
    classes = classes_of(categories, set(category_ids), name, problems)
    images = _images(document, name, problems)
    files = {identity: image.file_name for identity, image in images.items()}
    image_ids = _column(document, "image_id", name, files, problems, _file_forms)
    index_of = {identity: index for index, identity in enumerate(classes)}
    references = zip(document["annotations"], image_ids, category_ids, strict=True)
    boxes = _boxes_by_image(references, name, index_of, images, problems)
    records = tuple(
        build_record(image.image_id, image.file_name, _size(image, boxes[source_id]), boxes[source_id])
        for source_id, image in images.items()
    )
    return SourceDataset(tuple(classes.values()), records)


def _size(image: _Image, boxes: list[tuple[int, CleanBox]]) -> tuple[int, int]:
    """Return the size of an image; where only the masks that its boxes follow from tell one, it is theirs."""
    if image.width or not all("box_from_outline" in clean.repairs for _, clean in boxes):
        return image.width, image.height
    sizes = {mask_size(clean.segmentation) for _, clean in boxes}
    return (sizes.pop() if len(sizes) == 1 else None) or (0, 0)


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
    if document.get("annotations") is None and isinstance(document.get("images"), list):
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


def _column(
    document: dict[str, Any],
    key: str,
    name: str,
    names: dict[Identity, str],
    problems: ProblemLog,
    forms: Callable[[str], Iterable[str]] = lambda title: [title],
) -> list[Identity | None]:
    """Return the ids that the annotations refer to."""
    values = [entry.get(key) if isinstance(entry, dict) else None for entry in document["annotations"]]
    found: FoundIds = find_ids(values, names, forms)
    if found.way != "id":
        example = next(value for value, identity in zip(values, found.ids, strict=True) if identity is not None)
        problems.add("ids_matched", f"{name}: {found.num_found} {key} by {found.way}, such as {short(example)}")
    return found.ids


def _file_forms(file_name: str) -> set[str]:
    """Return what an image may be called: its file, with or without folders and ending."""
    last = file_name.replace("\\", "/").rpartition("/")[2]
    return {file_name, last, without_type(last)}


@dataclass(frozen=True)
class _Image:
    image_id: int
    file_name: str
    width: int
    height: int


def _images(document: dict[str, Any], name: str, problems: ProblemLog) -> dict[Identity, _Image]:
    """Return the images by the ids of the source, in the order of the file."""
    sound: dict[Identity, dict[str, Any]] = {}
    files: dict[str, Any] = {}
    for image in document["images"]:
        identity = identity_of(image.get("id")) if isinstance(image, dict) else None
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
        reasons = f"; {problems.reasons()}" if problems.counts else ""
        raise AnnotationError(f"{name}: images: the list holds no usable image; nothing to read{reasons}")
    renumbered = not all(is_whole(identity) for identity in sound)
    result: dict[Identity, _Image] = {}
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
    references: Iterable[tuple[Any, Identity | None, Identity | None]],
    name: str,
    index_of: dict[Identity, int],
    images: dict[Identity, _Image],
    problems: ProblemLog,
) -> dict[Identity, list[tuple[int, CleanBox]]]:
    """Return the boxes of each image with their classes, from annotations with their images and categories."""
    boxes: dict[Identity, list[tuple[int, CleanBox]]] = {identity: [] for identity in images}
    seen_ids: set[Any] = set()
    seen_boxes: set[Any] = set()
    meaning = BoxMeaning()
    are_numbers = all(isinstance(known, int) for known in index_of)
    for annotation, image_id, category_id in references:
        if not isinstance(annotation, dict) or identity_of(annotation.get("image_id")) is None:
            problems.add("annotation_malformed", f"{name}: {short(annotation)}")
            continue
        if "segments_info" in annotation:
            problems.add("annotation_panoptic", _where(annotation))
            continue
        if image_id is None:
            problems.add("annotation_without_image", _where(annotation))
            continue
        image = images[image_id]
        if (own_id := identity_of(annotation.get("id"))) is not None:
            if own_id in seen_ids:
                problems.add("annotation_duplicate_id", _where(annotation))
            seen_ids.add(own_id)
        try:
            class_index = _class_index(annotation, category_id, index_of, are_numbers)
            clean = clean_numbers(annotation, (image.width, image.height))
        except BoxProblem as problem:
            problems.add(problem.kind, f"{_where(annotation, image)}: {problem}")
            continue
        if contradiction := meaning.add(clean, (image.width, image.height)):
            problems.add("box_differs_from_outline", f"{_where(annotation, image)}: {contradiction}")
        identity = (image_id, class_index, struct.pack("4d", *clean.box))  # floats can be made to collide
        if identity in seen_boxes:
            problems.add("annotation_duplicate_box", _where(annotation, image))
        seen_boxes.add(identity)
        for repair in clean.repairs:
            problems.add(repair, _where(annotation, image))
        boxes[image_id].append((class_index, clean))
    meaning.tell(name, problems)
    return boxes


def _where(annotation: dict[str, Any], image: _Image | None = None) -> str:
    file_name = "" if image is None else f" ({image.file_name})"
    return f"annotation {short(annotation.get('id'))} of image {short(annotation['image_id'])}{file_name}"


def _class_index(
    annotation: dict[str, Any], category_id: Identity | None, index_of: dict[Identity, int], are_numbers: bool
) -> int:
    if category_id is not None:
        return index_of[category_id]
    category = annotation.get("category_id")
    if category is None:
        raise BoxProblem("category_missing", "no category_id")
    identity = identity_of(category)
    if identity is None or (isinstance(identity, str) and are_numbers):
        raise BoxProblem("category_malformed", f"category_id {short(category)}")
    raise BoxProblem("category_unknown", f"category_id {short(category)} is not in the list of categories")


def _whole(value: Any) -> Any:
    """Return a float that is a whole number as one; pandas writes columns with gaps as floats."""
    return int(value) if isinstance(value, float) and abs(value) < 2**53 and value == int(value) else value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value and value == clean_text(value)
