"""Predictions for many pictures in parts, each written once and whole.

    plan.json           what is predicted of what: a folder belongs to one plan
    parts/00000007.json pictures 7 x size to 8 x size, with what was found and what could not be read
    detections.json     all of it as a COCO document, made when every part is there
    results.json        the same as a COCO result file

A part appears by one atomic write under a name that follows from its pictures, and it is a pure function of them:
whoever writes it, and how often, it is the same. So a run that was killed is repeated, and only what is missing is
computed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolofleet.errors import UserError
from yolofleet.storage import Storage

PLAN_KEY = "plan.json"
PARTS_PREFIX = "parts/"
DOCUMENT_KEY = "detections.json"
RESULTS_KEY = "results.json"
FORMAT = 1
RESULT_KEYS = ("image_id", "category_id", "bbox", "score")

Part = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PredictionPlan:
    """What is predicted of what.

    Attributes:
        weights_sha256: of the detector.
        data_digest: of the pictures.
        num_pictures: how many there are.
        part_size: pictures of a part.
        confidence: lowest score kept.
        iou: overlap above which the worse of two boxes of a class is suppressed.
        max_detections: kept per picture.
        image_size: long side of the input in pixels.
        format: of this document.
    """

    weights_sha256: str
    data_digest: str
    num_pictures: int
    part_size: int
    confidence: float
    iou: float
    max_detections: int
    image_size: int
    format: int = FORMAT

    @property
    def num_parts(self) -> int:
        """How many parts there are."""
        return -(-self.num_pictures // self.part_size)

    def pictures(self, part: int) -> range:
        """Return the numbers of a part's pictures."""
        return range(part * self.part_size, min((part + 1) * self.part_size, self.num_pictures))


def part_key(part: int) -> str:
    """Return where a part lies."""
    return f"{PARTS_PREFIX}{part:08d}.json"


def missing_parts(storage: Storage, plan: PredictionPlan) -> list[int]:
    """Take a folder for a plan, or go on in it, and return the parts that are not there yet.

    Raises:
        UserError: The folder holds predictions of another plan.
    """
    text = json.dumps(asdict(plan), indent=1, sort_keys=True).encode()
    if not storage.put_if_absent(PLAN_KEY, text) and (found := storage.get(PLAN_KEY)) != text:
        raise UserError(
            f"{storage.url} holds predictions of something else ({_differences(found, plan)} differ); "
            "choose another --out, or delete it"
        )
    there = {entry.key for entry in storage.list(PARTS_PREFIX)}
    return [part for part in range(plan.num_parts) if part_key(part) not in there]


def merge_parts(
    storage: Storage, plan: PredictionPlan, classes: Sequence[tuple[int, str]]
) -> tuple[dict[str, int], list[str]]:
    """Write the COCO document and the COCO results of all parts; no more than one part is held in memory.

    Returns:
        How many images and annotations there are, and what could not be read.
    """
    problems: list[str] = []
    counts = {"images": 0, "annotations": 0}

    def images() -> Iterator[Any]:
        for part in _parts(storage, plan):
            problems.extend(part["problems"])
            counts["images"] += len(part["images"])
            yield from part["images"]

    def annotations() -> Iterator[Any]:
        for part in _parts(storage, plan):
            for annotation in part["annotations"]:
                counts["annotations"] += 1
                box = annotation["bbox"]
                area = round(box[2] * box[3], 3)
                yield {"id": counts["annotations"], **annotation, "area": area, "iscrowd": 0}

    def results() -> Iterator[Any]:
        for part in _parts(storage, plan):
            yield from ({key: entry[key] for key in RESULT_KEYS} for entry in part["annotations"])

    categories = iter([{"id": category_id, "name": name} for category_id, name in classes])
    with tempfile.TemporaryDirectory(prefix="yolofleet-merge-") as folder:
        document, result_list = Path(folder, DOCUMENT_KEY), Path(folder, RESULTS_KEY)
        with document.open("w", encoding="utf-8") as file:
            lists = {"images": images(), "categories": categories, "annotations": annotations()}
            for place, (key, values) in enumerate(lists.items()):
                file.write(f'{"," if place else "{"}\n"{key}": ')
                _write_list(file, values)
            file.write("}\n")
        with result_list.open("w", encoding="utf-8") as file:
            _write_list(file, results())
        storage.put(RESULTS_KEY, result_list)
        storage.put(DOCUMENT_KEY, document)
    return counts, problems


def _parts(storage: Storage, plan: PredictionPlan) -> Iterator[Part]:
    for part in range(plan.num_parts):
        yield json.loads(storage.get(part_key(part)))


def _write_list(file: Any, values: Iterator[Any]) -> None:
    file.write("[")
    for place, value in enumerate(values):
        file.write(("," if place else "") + "\n " + json.dumps(value))
    file.write("]\n")


def _differences(found: bytes, plan: PredictionPlan) -> str:
    try:
        there = json.loads(found)
        return ", ".join(key for key, value in asdict(plan).items() if there.get(key) != value)
    except (ValueError, AttributeError):
        return "all of it"
