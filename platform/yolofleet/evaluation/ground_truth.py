"""Ground truth from a COCO annotation file, with whole numbers for ids, and the names under which results find it.

pycocotools takes ids of any type but compares them as they are, so a file with the id "7" in one list and 7 in another
evaluates to nothing. Here references are found as in result files (`IdIndex`), and what was repaired is noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural, short
from yolofleet.evaluation.id_index import UNKNOWN, IdIndex
from yolofleet.evaluation.json_file import read_json
from yolofleet.evaluation.result_records import Note, is_finite, is_id

NEEDED = {"images": ("id",), "categories": ("id", "name"), "annotations": ("image_id", "category_id", "bbox")}
"""What an evaluation reads of a COCO annotation file."""
NAME_KEYS = ("file_name", "coco_url", "path")
"""Where an image says the name of its file; LVIS gives only the URL."""
MOST_NAMED = 3


class GroundTruthError(UserError):
    """A file is not a COCO annotation file that detections can be evaluated with."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Entries:
    """The images or the categories of a ground truth.

    Attributes:
        index: Finds them by what other tools call them.
        numbers: (N,) the whole numbers that are their ids in the document.
        are_plain: Whether the file's own ids are these whole numbers.
    """

    index: IdIndex
    numbers: NDArray[np.int64]
    are_plain: bool

    @property
    def source_ids(self) -> dict[int, Any] | None:
        """The file's own ids by the document's, where these differ."""
        return None if self.are_plain else dict(zip(self.numbers.tolist(), self.index.ids, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroundTruth:
    """A COCO document that detections can be evaluated with.

    Attributes:
        document: Its ids are whole numbers.
        images: Its images, in the order of the file.
        categories: Its categories.
        notes: What was repaired or left out.
    """

    document: Mapping[str, Any]
    images: Entries
    categories: Entries
    notes: tuple[Note, ...] = ()

    @staticmethod
    def of(document: Mapping[str, Any]) -> GroundTruth:
        """Wrap a COCO document of any ids; references to nothing are left out and noted."""
        names = [str(next((image[key] for key in NAME_KEYS if image.get(key)), "")) for image in document["images"]]
        images = _number(document["images"], names)
        categories = _number(document["categories"], [str(entry["name"]) for entry in document["categories"]])
        notes: list[Note] = []
        columns: dict[str, list[int]] = {}
        for key, entries in (("image_id", images), ("category_id", categories)):
            values = [annotation[key] for annotation in document["annotations"]]
            positions = entries.index.find(values).positions
            columns[key] = [UNKNOWN if row < 0 else entries.numbers[row] for row in positions]
            unknown = list(dict.fromkeys(values[row] for row in np.flatnonzero(positions < 0)))
            kinds = set(map(type, entries.index.ids))
            if unknown:
                count = int((positions < 0).sum())
                named = and_more(list(map(repr, unknown)), MOST_NAMED)
                text = f"{plural(count, 'object')} left out: {key} {named} is not in the ground truth's list of ids"
                notes.append(Note(kind=f"truth_{key}_unknown", count=count, text=text))
            elif other := sum(type(value) not in kinds for value in values):
                objects = plural(other, "object of the ground truth writes", "objects of the ground truth write")
                text = f"{objects} {key} in another form than its list of ids: matched"
                notes.append(Note(kind=f"truth_{key}_matched", count=other, text=text))
        if notes or not (images.are_plain and categories.are_plain):
            document = _renumber(document, images, categories, columns)
        return GroundTruth(document=document, images=images, categories=categories, notes=tuple(notes))


def _number(entries: Sequence[Mapping[str, Any]], names: list[str]) -> Entries:
    """Number entries by their ids; texts in their order, in which pycocotools goes through them too."""
    ids = [entry["id"] for entry in entries]
    if all(not isinstance(value, str) and abs(value) < 2**63 for value in ids):
        numbers = {value: int(value) for value in ids}
    else:
        texts = any(isinstance(value, str) for value in ids)
        numbers = {value: number for number, value in enumerate(sorted(set(ids), key=str if texts else None), start=1)}
    return Entries(
        index=IdIndex(ids, names),
        numbers=np.array([numbers[value] for value in ids], np.int64),
        are_plain=all(isinstance(value, int) and numbers[value] == value for value in ids),
    )


def _renumber(
    document: Mapping[str, Any], images: Entries, categories: Entries, columns: Mapping[str, list[int]]
) -> dict[str, Any]:
    """Return a document in which all ids are whole numbers and every annotation refers to an image and a category."""
    references = zip(document["annotations"], columns["image_id"], columns["category_id"], strict=True)
    lists = {
        key: [{**entry, "id": number} for entry, number in zip(document[key], entries.numbers.tolist(), strict=True)]
        for key, entries in (("images", images), ("categories", categories))
    }
    annotations = [
        {**entry, "image_id": int(image), "category_id": int(category)}
        for entry, image, category in references
        if image != UNKNOWN and category != UNKNOWN
    ]
    return {**document, **lists, "annotations": annotations}


def read_ground_truth(path: Path) -> GroundTruth:
    """Read a COCO "instances" file; one without annotations, as for COCO's test-dev, has nothing to measure.

    Raises:
        GroundTruthError: It cannot be read, is not JSON, or lacks what an evaluation needs.
    """
    try:
        document = read_json(path)
    except UserError as error:
        raise GroundTruthError(str(error)) from error
    if not isinstance(document, dict):
        raise GroundTruthError(
            f"{path} is not a COCO annotation file: it holds a {type(document).__name__}, not an object with images, "
            "categories and annotations; is it a file of results? Results come first, then the ground truth"
        )
    if isinstance(document.get("images"), list):
        document = {"annotations": [], **document}
    for key, fields in NEEDED.items():
        entries = document.get(key)
        if not isinstance(entries, list):
            raise GroundTruthError(f"{path} is not a COCO annotation file: '{key}' must be a list")
        for number, entry in enumerate(entries):
            problem = _annotation_problem(entry, fields)
            if problem:
                raise GroundTruthError(f"{path}: {key}[{number}] {problem}")
    return GroundTruth.of(document)


def _annotation_problem(entry: Any, fields: tuple[str, ...]) -> str | None:
    """Return the first mistake of an image, a category or an annotation, if there is one."""
    if not isinstance(entry, dict):
        return f"is {short(entry, 40)}, not an object"
    for field in fields:
        if field not in entry:
            return f"has no '{field}'"
        if field.endswith("id") and not is_id(entry[field]):
            return f"has {field} {short(entry[field], 40)}; it must be a whole number or a name"
    if "bbox" in fields:
        bbox = entry["bbox"]
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(is_finite(value) for value in bbox):
            return f"has bbox {short(bbox, 60)}; it must be four numbers x, y, width, height in pixels"
        if not is_finite(0 if entry.get("area") is None else entry["area"]):
            return f"has area {short(entry['area'], 40)}; it must be a number"
        if (entry.get("iscrowd") or 0) not in (0, 1):
            return f"has iscrowd {short(entry['iscrowd'], 40)}; it must be 0 or 1"
    return None
