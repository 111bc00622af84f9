"""The annotations of a ground truth, with the boxes that `data shard` reads in them.

A box that is plainly sound is left as it is, because most are; the others go through the checks that all readers share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural, short
from yolofleet.data.annotation import (
    LARGEST_AREA,
    LARGEST_BOX_PIXELS,
    THINNEST_BOX_PIXELS,
    BoxProblem,
    CleanBox,
    clean_numbers,
)
from yolofleet.data.box_meaning import BoxMeaning
from yolofleet.data.problems import PROBLEM_KINDS, ProblemLog
from yolofleet.data.source_ids import Identity, identity_of
from yolofleet.evaluation.result_records import Note, is_id

Size = tuple[int, int]
NUMBERS = {int, float}
MOST_MEANINGS = 1000
"""Annotations, spread over the file, that show what the numbers of all boxes mean."""
OF_OUTLINES = ("segmentation_malformed", "mask_of_other_size")
"""Repairs of what is not evaluated here."""
WITHOUT_AREA = ("box_zero_area", "box_tiny")
"""Kept where no outline has the box: pycocotools counts such an object as one that nothing finds."""
OUTCOMES = {"drop": "left out", "repair": "repaired"}


def clean_annotations(
    annotations: list[Any], images: Mapping[Identity, Mapping[str, Any]], name: str
) -> tuple[list[Mapping[str, Any]], list[Note]]:
    """Return the annotations that can be used, with sound boxes, areas and crowd flags, and what was repaired.

    Args:
        annotations: As the file has them.
        images: By `identity_of`.
        name: Of the file, in messages.

    Raises:
        UserError: Most boxes are shares of their images, or no annotation can be used.
    """
    kept: list[Mapping[str, Any]] = []
    problems = ProblemLog()
    meaning = BoxMeaning()
    step = 1 + len(annotations) // MOST_MEANINGS
    for number, annotation in enumerate(annotations):
        is_plain = _is_plain(annotation)
        if is_plain:
            kept.append(annotation)
            if number % step and min(annotation["bbox"][2:]) >= THINNEST_BOX_PIXELS:
                continue
        try:
            _check_references(annotation)
            image_id = identity_of(annotation["image_id"])
            size = _size({} if image_id is None else images.get(image_id, {}))
            clean = clean_numbers(annotation, size)
        except BoxProblem as problem:
            problems.add(problem.kind, f"annotations[{number}]: {problem}")
            if not is_plain and problem.kind in WITHOUT_AREA:  # nor has its outline one
                area = annotation.get("area")
                own = {"area": area if _is_area(area) else 0.0, "iscrowd": int(annotation.get("iscrowd") == 1)}
                kept.append({**annotation, "bbox": [0.0, 0.0, 0.0, 0.0], **own})
            continue
        if contradiction := meaning.add(clean, size):
            problems.add("box_differs_from_outline", f"annotations[{number}]: {contradiction}")
        if is_plain:
            continue
        for repair in clean.repairs:
            # An area that is not given at all is the box's in COCO's rules, too.
            if repair not in OF_OUTLINES and (repair != "area_missing" or annotation.get("area") is not None):
                problems.add(repair, f"annotations[{number}]")
        kept.append({**annotation, "bbox": _box(clean, size), "area": clean.area, "iscrowd": int(clean.is_crowd)})
    if annotations and not kept:
        raise UserError(f"{name}: none of its {plural(len(annotations), 'object')} can be used: {problems.main_loss()}")
    meaning.tell(name if step == 1 else f"{name}, one annotation of {step}", problems)
    return kept, _notes_on(problems)


def _size(image: Mapping[str, Any]) -> Size:
    """Return width and height of an image; (0, 0) where it does not say."""
    sides: list[Any] = [image.get("width"), image.get("height")]
    width, height = (int(side) if type(side) in NUMBERS and 0 < side < LARGEST_BOX_PIXELS else 0 for side in sides)
    return (width, height) if width and height else (0, 0)


def _box(clean: CleanBox, size: Size) -> list[float]:
    """Return a clean box; one that was turned here ends at the image's edge, as it does in shards."""
    x, y, width, height = clean.box
    is_inside = 0 <= x and 0 <= y and x + width <= size[0] and y + height <= size[1]
    if is_inside or "box_rotated" not in clean.repairs or not all(size):
        return [x, y, width, height]
    left, right = (min(max(value, 0.0), size[0]) for value in (x, x + width))
    top, bottom = (min(max(value, 0.0), size[1]) for value in (y, y + height))
    return [left, top, right - left, bottom - top]


def _is_plain(annotation: Any) -> bool:
    """Return whether there is nothing to clean; this is asked of every annotation, so it is quick."""
    if not isinstance(annotation, dict) or "segments_info" in annotation:
        return False
    attributes = annotation.get("attributes")
    if isinstance(attributes, dict) and attributes.get("rotation"):
        return False
    bbox, area, crowd = annotation.get("bbox"), annotation.get("area"), annotation.get("iscrowd")
    if not isinstance(bbox, list) or len(bbox) != 4 or not NUMBERS.issuperset(map(type, bbox)):
        return False
    x, y, width, height = bbox
    least = THINNEST_BOX_PIXELS if annotation.get("segmentation") else 0
    return (
        -LARGEST_BOX_PIXELS < x < LARGEST_BOX_PIXELS
        and -LARGEST_BOX_PIXELS < y < LARGEST_BOX_PIXELS
        and least <= width < LARGEST_BOX_PIXELS
        and least <= height < LARGEST_BOX_PIXELS
        and (area is None or _is_area(area))
        and (crowd is None or crowd in (0, 1))
        and is_id(annotation.get("image_id"))
        and is_id(annotation.get("category_id"))
    )


def _is_area(value: Any) -> bool:
    return type(value) in NUMBERS and 0 <= value <= LARGEST_AREA


def _check_references(annotation: Any) -> None:
    """Check that an annotation names an image and a category, whether they exist or not.

    Raises:
        BoxProblem: It does not.
    """
    if not isinstance(annotation, dict) or not is_id(annotation.get("image_id")):
        raise BoxProblem("annotation_malformed", short(annotation))
    if "segments_info" in annotation:
        raise BoxProblem("annotation_panoptic", "segments_info")
    if annotation.get("category_id") is None:
        raise BoxProblem("category_missing", "no category_id")
    if not is_id(annotation["category_id"]):
        raise BoxProblem("category_malformed", f"category_id {short(annotation['category_id'])}")


def _notes_on(problems: ProblemLog) -> list[Note]:
    notes = []
    for kind, count in sorted(problems.counts.items()):
        outcome, meaning = PROBLEM_KINDS[kind].outcome, PROBLEM_KINDS[kind].meaning
        done = "counted as not found" if kind in WITHOUT_AREA else OUTCOMES.get(outcome)
        objects = f"{plural(count, 'object')} of the ground truth {done}" if done else ""
        text = f"{objects or 'ground truth'}: {meaning} (such as {problems.examples[kind][0]})"
        notes.append(Note(kind=f"truth_{kind}", count=count, text=text))
    return notes
