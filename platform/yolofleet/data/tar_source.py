"""Foreign WebDataset shards as a source: images and annotations inside tar files.

Three forms of ``KEY.json`` are understood: ours (``boxes`` and class indices in ``classes``), parallel lists
(``bboxes`` and ``category_ids``), and COCO's own (``annotations`` with ``bbox`` and ``category_id``).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import one_line, plural, short
from yolofleet.data.annotation import BoxProblem, CleanBox, build_record, clean_numbers
from yolofleet.data.json_values import is_whole
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord, ObjectClass
from yolofleet.data.sources import SourceDataset
from yolofleet.data.tar_scan import TarSample, scan_samples
from yolofleet.storage import ObjectInfo, ObjectNotFoundError, Storage


class TarImages:
    """The images inside tar files, by ``ARCHIVE/KEY.EXTENSION``."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._members: dict[str, tuple[str, int, int]] = {}
        self.url = storage.url

    def add(self, key: str, archive: str, offset: int, size_bytes: int) -> None:
        """Remember the offset of an image in its archive."""
        self._members[key] = (archive, offset, size_bytes)

    def list(self) -> list[ObjectInfo]:
        """Return every image, sorted by key."""
        return [ObjectInfo(key, size_bytes) for key, (_, _, size_bytes) in sorted(self._members.items())]

    def get(self, key: str) -> bytes:
        """Return the bytes of an image."""
        if key not in self._members:
            raise ObjectNotFoundError(f"{self.url}: no image {key!r}")
        return self._storage.get_range(*self._members[key])


def read_tar_shards(
    storage: Storage, archives: list[ObjectInfo], problems: ProblemLog
) -> tuple[SourceDataset, TarImages]:
    """Read the annotations of tar shards, and find their images.

    Raises:
        UserError: Not a single sample can be used.
    """
    images = TarImages(storage)
    found: list[tuple[dict[str, Any], str]] = []
    for archive in archives:
        name = f"{storage.url}/{archive.key}"
        with storage.open_stream(archive.key) as stream:
            for sample in scan_samples(stream, archive.size_bytes, name, problems):
                document = _annotation(sample, name, problems)
                if document is None or sample.image is None:
                    continue
                parts = sample.image.name.replace("\\", "_").replace("..", "__").split("/")
                key = "/".join([f"{len(found):09d}", *(part for part in parts if part not in ("", "."))])
                images.add(key, archive.key, sample.image.offset, sample.image.size_bytes)
                found.append((document, key))
    if not found:
        files = plural(len(archives), "tar file")
        raise UserError(f"{storage.url}: no sample can be used in {files}; {problems.reasons()}")
    categories = sorted({category for document, _ in found for category, _ in document["objects"]})
    index_of = {category: index for index, category in enumerate(categories)}
    records = _records(found, index_of, problems)
    return SourceDataset(tuple(ObjectClass(category, str(category)) for category in categories), records), images


def _annotation(sample: TarSample, name: str, problems: ProblemLog) -> dict[str, Any] | None:
    """Return a sample's id, size and raw objects (category, annotation); None if its JSON makes no sense."""
    where = f"{name}: {short(sample.key)}"
    try:
        document = json.loads((sample.annotation.data if sample.annotation else None) or b"")
        objects = _objects(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problems.add("sample_json_damaged", f"{where}: {type(error).__name__}: {one_line(error)}")
        return None
    sound = []
    for category, annotation in objects:
        if is_whole(category) and category >= 0:
            sound.append((category, annotation))
        else:
            problems.add("category_malformed", f"{where}: {short(category)}")
    size = [document.get("width"), document.get("height")]
    known = all(is_whole(side) and side > 0 for side in size)
    identity = document.get("image_id")
    if identity is not None and not is_whole(identity):
        problems.add("image_id_renumbered", f"{where}: id {short(identity)}")
    upright = document.get("upright")
    return {
        "id": identity,
        "size": size if known else [0, 0],
        "objects": sound,
        "where": where,
        "upright": upright if isinstance(upright, bool) else None,
    }


def _objects(document: Any) -> list[tuple[Any, dict[str, Any]]]:
    if "annotations" in document:
        return [(entry["category_id"], entry) for entry in document["annotations"]]
    boxes = document["boxes"] if "boxes" in document else document["bboxes"]
    categories = document["classes"] if "classes" in document else document["category_ids"]
    count = len(boxes)
    crowds = document.get("iscrowd", [0] * count)
    areas = document.get("areas", [None] * count)
    segmentations = document.get("segmentations", [None] * count)
    columns = zip(categories, boxes, crowds, areas, segmentations, strict=True)
    return [
        (category, {"bbox": box, "iscrowd": crowd, "area": area, "segmentation": segmentation})
        for category, box, crowd, area, segmentation in columns
    ]


def _records(
    found: list[tuple[dict[str, Any], str]], index_of: dict[int, int], problems: ProblemLog
) -> tuple[ImageRecord, ...]:
    ids = [document["id"] for document, _ in found]
    keeps_ids = all(is_whole(identity) for identity in ids) and len(set(ids)) == len(ids)
    records = []
    for number, (document, key) in enumerate(found, start=1):
        boxes: list[tuple[int, CleanBox]] = []
        for category, annotation in document["objects"]:
            try:
                boxes.append(
                    (index_of[category], clean_numbers(annotation, (document["size"][0], document["size"][1])))
                )
            except BoxProblem as problem:
                problems.add(problem.kind, f"{document['where']}: {problem}")
        record = build_record(document["id"] if keeps_ids else number, key, document["size"], boxes)
        records.append(replace(record, upright=document["upright"]))
    return tuple(records)
