"""Detections of a whole dataset: as arrays, as the records of a COCO result file, and in groups beside the objects.

Numbers are rounded once, when the network's output becomes `Detections` (boxes to 3 decimals, scores to 5, as in the
COCO result files of this model family). A file holds what is evaluated, so evaluating the file gives the same figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.text import short
from yolofleet.evaluation.protocol import COCO_PROTOCOL, Protocol
from yolofleet.evaluation.result_records import read_columns

if TYPE_CHECKING:
    from torch import Tensor

Record = dict[str, Any]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

BOX_DECIMALS = 3
SCORE_DECIMALS = 5
MOST_DETECTION_BYTES = 1 << 30
"""Of a file: a hundred detections in each of some hundred thousand images."""
RECORD_KEYS = ("image_id", "category_id", "bbox", "score")


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
        columns = read_columns(records, source)
        numbers = zip(columns.image_ids, columns.category_ids, strict=True)
        for number, ids in enumerate(numbers if not columns.has_whole_ids else (), start=1):
            for key, value in zip(RECORD_KEYS, ids, strict=False):
                if not isinstance(value, int) or abs(value) >= 2**63:
                    where = f"{source}: record {number} of {len(records)}"
                    raise UserError(f"{where}: {key} is {short(value, 40)}; it must be a whole number")
        return Detections(
            image_ids=np.array(columns.image_ids, np.int64),
            category_ids=np.array(columns.category_ids, np.int64),
            boxes=columns.boxes,
            scores=columns.scores,
        )

    def select(self, rows: NDArray[Any]) -> Detections:
        """Return some of the detections, by their numbers or by a flag for each."""
        return Detections(
            image_ids=self.image_ids[rows],
            category_ids=self.category_ids[rows],
            boxes=self.boxes[rows],
            scores=self.scores[rows],
        )

    def records(
        self, image_ids: Mapping[int, Any] | None = None, category_ids: Mapping[int, Any] | None = None
    ) -> list[Record]:
        """Return COCO result records: image_id, category_id, bbox x, y, width, height, score.

        Args:
            image_ids: What a record says for each image id (None: the id itself).
            category_ids: The same of the categories.
        """
        own: list[list[Any]] = [self.image_ids.tolist(), self.category_ids.tolist()]
        ids = (
            numbers if names is None else [names[number] for number in numbers]
            for numbers, names in zip(own, (image_ids, category_ids), strict=True)
        )
        columns = (*ids, self.boxes.tolist(), self.scores.tolist())
        return [dict(zip(RECORD_KEYS, values, strict=True)) for values in zip(*columns, strict=True)]

    def write(
        self, path: Path, image_ids: Mapping[int, Any] | None = None, category_ids: Mapping[int, Any] | None = None
    ) -> None:
        """Write a COCO result file, one record a line; see `records`.

        Raises:
            UserError: The file cannot be written.
        """
        lines = ",\n".join(json.dumps(record) for record in self.records(image_ids, category_ids))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"[{lines}]\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BoxTable:
    """Boxes sorted by group: ground truth (G) or detections (D).

    Attributes:
        groups: (N,) ascending; one number for each image and class.
        boxes: (N, 4) x, y, width, height in pixels.
        areas: (N,) in square pixels, for the size ranges.
        crowds: (N,) bool; all False for detections.
        ranks: (N,) position inside the group; detections are in descending score.
    """

    groups: Integers
    boxes: Floats
    areas: Floats
    crowds: NDArray[np.bool_]
    ranks: Integers


def ground_truth_boxes(
    annotations: Sequence[Mapping[str, Any]],
    image_ids: Integers,
    category_ids: Integers,
    class_agnostic: bool = False,
) -> BoxTable:
    """Return annotations of known images and classes in groups, each group in the order of the file.

    Without classes a group is an image, and in it the objects of each class follow each other, as in pycocotools.
    """
    of_image = np.array([entry["image_id"] for entry in annotations], np.int64)
    of_category = np.array([entry["category_id"] for entry in annotations], np.int64)
    boxes = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
    product = boxes[:, 2] * boxes[:, 3]
    given = [entry.get("area") for entry in annotations]
    areas = np.array([side if area is None else area for area, side in zip(given, product, strict=True)], np.float64)
    crowds = np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], bool)
    known = np.isin(of_image, image_ids) & np.isin(of_category, category_ids)
    groups = _groups(of_image, of_category, image_ids, category_ids)
    order = np.flatnonzero(known)[np.argsort(groups[known], kind="stable")]
    if class_agnostic:
        groups %= max(len(image_ids), 1)
        order = order[np.argsort(groups[order], kind="stable")]
    return BoxTable(
        groups=groups[order],
        boxes=boxes[order],
        areas=areas[order],
        crowds=crowds[order],
        ranks=_ranks(groups[order]),
    )


def detection_boxes(
    detections: Detections,
    image_ids: Integers,
    category_ids: Integers,
    protocol: Protocol = COCO_PROTOCOL,
) -> tuple[BoxTable, Floats]:
    """Return detections of known classes in groups, by descending score, at most 100 a group; and their scores."""
    groups = _groups(detections.image_ids, detections.category_ids, image_ids, category_ids)
    known = np.flatnonzero(np.isin(detections.category_ids, category_ids))
    if protocol.class_agnostic:  # of equal scores in an image, the class with the smaller id comes first
        known = known[np.argsort(groups[known], kind="stable")]
        groups %= max(len(image_ids), 1)
    order = known[np.lexsort((-detections.scores[known], groups[known]))]
    ranks = _ranks(groups[order])
    order, ranks = order[ranks < protocol.max_detections], ranks[ranks < protocol.max_detections]
    boxes = detections.boxes[order]
    detected = BoxTable(
        groups=groups[order],
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowds=np.zeros(len(order), bool),
        ranks=ranks,
    )
    return detected, detections.scores[order]


def _groups(
    of_image: Integers,
    of_category: Integers,
    image_ids: Integers,
    category_ids: Integers,
) -> Integers:
    """Return one number for each class and image, classes first; images in the order of their ids."""
    return np.searchsorted(category_ids, of_category) * len(image_ids) + np.searchsorted(image_ids, of_image)


def _ranks(groups: Integers) -> Integers:
    """Return the position of each entry inside its group, from ascending group numbers (N,)."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups, side="left")
