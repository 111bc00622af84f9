"""Ground truth from a COCO annotation file, with whole numbers for ids, and the names under which results find it.

Boxes are read as `data shard` reads them, so that a file and its shards give the same figures; but one that is plainly
sound is left as it is, because most are. pycocotools takes ids of any type but compares them as they are, so a file
with the id "7" in one list and 7 in another evaluates to nothing. Here references are found as in result files
(`IdIndex`), and what was repaired is noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural, short
from yolofleet.data.source_ids import Identity, identity_of
from yolofleet.evaluation.id_index import UNKNOWN, IdIndex
from yolofleet.evaluation.json_file import read_json
from yolofleet.evaluation.result_records import Note, is_id
from yolofleet.evaluation.truth_annotations import clean_annotations

LISTS = ("images", "categories", "annotations")
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
        GroundTruthError: It cannot be read, is not JSON, lacks what an evaluation needs, gives two entries one id, or
            none of its annotations can be used.
    """
    try:
        return _read(path)
    except UserError as error:
        raise GroundTruthError(str(error)) from error


def _read(path: Path) -> GroundTruth:
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(
            f"{path} is not a COCO annotation file: it holds a {type(document).__name__}, not an object with images, "
            "categories and annotations; is it a file of results? Results come first, then the ground truth"
        )
    if isinstance(document.get("images"), list):
        document = {"annotations": [], **document}
    for key in LISTS:
        if not isinstance(document.get(key), list):
            raise UserError(f"{path} is not a COCO annotation file: '{key}' must be a list")
    notes: list[Note] = []
    images = _by_identity(document["images"], f"{path}: images")
    categories = _by_identity(document["categories"], f"{path}: categories")
    for key, found in (("images", images), ("categories", categories)):
        if again := len(document[key]) - len(found):
            text = f"{plural(again, 'entry', 'entries')} of the ground truth's {key} left out: the same one once more"
            notes.append(Note(kind=f"truth_{key}_repeated", count=again, text=text))
            document[key] = list(found.values())
    if unnamed := sum(entry.get("name") in (None, "") for entry in document["categories"]):
        text = f"{plural(unnamed, 'category has', 'categories have')} no name in the ground truth: named by the id"
        notes.append(Note(kind="truth_category_unnamed", count=unnamed, text=text))
        document["categories"] = [
            {**entry, "name": str(entry["id"])} if entry.get("name") in (None, "") else entry
            for entry in document["categories"]
        ]
    document["annotations"], repairs = clean_annotations(document["annotations"], images, str(path))
    truth = GroundTruth.of(document)
    return replace(truth, notes=(*notes, *repairs, *truth.notes))


def _by_identity(entries: list[Any], where: str) -> dict[Identity, Mapping[str, Any]]:
    """Return images or categories by `identity_of`; of one that is there twice the first.

    Raises:
        UserError: One has no id, or two that differ have the same.
    """
    found: dict[Identity, Mapping[str, Any]] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{where}[{number}] is {short(entry, 40)}, not an object")
        if "id" not in entry:
            raise UserError(f"{where}[{number}] has no 'id'")
        identity = identity_of(entry["id"])
        if identity is None or not is_id(entry["id"]):
            raise UserError(f"{where}[{number}] has id {short(entry['id'], 40)}; it must be a whole number or a name")
        if (other := found.setdefault(identity, entry)) != entry:
            raise UserError(
                f"{where}: id {short(entry['id'], 40)} is given to {_title(other)} and to {_title(entry)}; what refers "
                "to it is ambiguous, so give each its own id"
            )
    return found


def _title(entry: Mapping[str, Any]) -> str:
    return short(next((entry[key] for key in ("name", *NAME_KEYS) if entry.get(key)), entry))
