"""Detections of a whole dataset, as arrays and as the records of a COCO result file; ground truth from a COCO file.

Numbers are rounded once, when the network's output becomes `Detections` (boxes to 3 decimals, scores to 5, as in the
COCO result files of this model family). A file holds what is evaluated, so evaluating the file gives the same figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.core.regular_files import read_regular

Record = dict[str, Any]

BOX_DECIMALS = 3
SCORE_DECIMALS = 5
MOST_BYTES = 2**31
RECORD_KEYS = ("image_id", "category_id", "bbox", "score")
NEEDED = {"images": ("id",), "categories": ("id", "name"), "annotations": ("image_id", "category_id", "bbox")}
"""What an evaluation reads of a COCO annotation file."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detections:
    """Detections in columns.

    Attributes:
        image_ids: (D,) int64.
        category_ids: (D,) int64, the dataset's own ids.
        boxes: (D, 4) float64 x, y, width, height in pixels of the original images.
        scores: (D,) float64.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def from_tensor(rows: Tensor, category_ids: Sequence[int]) -> Detections:
        """Round the rows of `collect_detections` and sort them by image id.

        Args:
            rows: (D, 7) float64: image id, x1, y1, x2, y2, score, class index.
            category_ids: The dataset's id of each class index.
        """
        values = rows.detach().cpu().double().numpy()
        values = values[np.argsort(values[:, 0], kind="stable")]  # independent of the rank that evaluated an image
        boxes = np.concatenate((values[:, 1:3], values[:, 3:5] - values[:, 1:3]), axis=1)
        return Detections(
            image_ids=values[:, 0].astype(np.int64),
            category_ids=np.asarray(category_ids, np.int64)[values[:, 6].astype(np.int64)],
            boxes=np.round(boxes, BOX_DECIMALS),
            scores=np.round(values[:, 5], SCORE_DECIMALS),
        )

    @staticmethod
    def from_records(records: Sequence[Mapping[str, Any]], *, source: str = "detections") -> Detections:
        """Convert COCO result records.

        Raises:
            UserError: A record is malformed; the message names `source`, the record's number, the key and the value.
        """
        for number, record in enumerate(records, start=1):
            problem = _problem(record)
            if problem:
                raise UserError(f"{source}: record {number} of {len(records)}: {problem}")
        return Detections(
            image_ids=np.array([record["image_id"] for record in records], np.int64),
            category_ids=np.array([record["category_id"] for record in records], np.int64),
            boxes=np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4),
            scores=np.array([record["score"] for record in records], np.float64),
        )

    @staticmethod
    def read(path: Path) -> Detections:
        """Read a COCO result file.

        Raises:
            UserError: The file cannot be read, is not JSON, or is not a list of result records.
        """
        try:
            records = json.loads(read_regular(path, MOST_BYTES))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        if not isinstance(records, list):
            raise UserError(
                f"{path} is not a COCO result file: it holds {type(records).__name__}, not a list of records"
            )
        return Detections.from_records(records, source=str(path))

    def records(self) -> list[Record]:
        """Return COCO result records: image_id, category_id, bbox x, y, width, height, score."""
        columns = (self.image_ids.tolist(), self.category_ids.tolist(), self.boxes.tolist(), self.scores.tolist())
        return [dict(zip(RECORD_KEYS, values, strict=True)) for values in zip(*columns, strict=True)]

    def write(self, path: Path) -> None:
        """Write a COCO result file, one record a line.

        Raises:
            UserError: The file cannot be written.
        """
        lines = ",\n".join(json.dumps(record) for record in self.records())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"[{lines}]\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _problem(record: Any) -> str | None:
    """Return the first mistake of a COCO result record, if there is one."""
    if not isinstance(record, Mapping):
        return f"it is {record!r:.60}, not an object with image_id, category_id, bbox and score"
    missing = [key for key in RECORD_KEYS if key not in record]
    if missing:
        return f"it has no {' and no '.join(missing)}"
    for key in ("image_id", "category_id"):
        if not _is_id(record[key]):
            return f"{key} is {record[key]!r:.40}; it must be a whole number"
    bbox = record["bbox"]
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(_is_finite(value) for value in bbox):
        return f"bbox is {bbox!r:.80}; it must be four finite numbers x, y, width, height in pixels"
    if not _is_finite(record["score"]):
        return f"score is {record['score']!r:.40}; it must be a finite number"
    return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


class GroundTruthError(UserError):
    """A file is not a COCO annotation file that detections can be evaluated with."""


def read_ground_truth(path: Path) -> dict[str, Any]:
    """Read a COCO "instances" file as it is: nothing is dropped or repaired, as pycocotools would not either.

    Returns:
        The document, with the keys that an evaluation needs.

    Raises:
        GroundTruthError: It cannot be read, is not JSON, or lacks what an evaluation needs.
    """
    try:
        document = json.loads(read_regular(path, MOST_BYTES))
    except OSError as error:
        raise GroundTruthError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise GroundTruthError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise GroundTruthError(f"{path} is not a COCO annotation file: it holds a {type(document).__name__}")
    for key, fields in NEEDED.items():
        entries = document.get(key)
        if not isinstance(entries, list):
            raise GroundTruthError(f"{path} is not a COCO annotation file: '{key}' must be a list")
        for number, entry in enumerate(entries):
            problem = _annotation_problem(entry, fields)
            if problem:
                raise GroundTruthError(f"{path}: {key}[{number}] {problem}")
    return document


def _annotation_problem(entry: Any, fields: tuple[str, ...]) -> str | None:
    """Return the first mistake of an image, a category or an annotation, if there is one."""
    if not isinstance(entry, dict):
        return f"is {entry!r:.40}, not an object"
    for field in fields:
        if field not in entry:
            return f"has no '{field}'"
        if field.endswith("id") and not _is_id(entry[field]):
            return f"has {field} {entry[field]!r:.40}; it must be a whole number"
    if "bbox" in fields:
        bbox = entry["bbox"]
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_finite(value) for value in bbox):
            return f"has bbox {bbox!r:.60}; it must be four numbers x, y, width, height in pixels"
        if not _is_finite(entry.get("area", 0)):
            return f"has area {entry['area']!r:.40}; it must be a number"
    return None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
