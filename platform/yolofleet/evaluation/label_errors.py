"""Likely wrong and missing labels, by what a trained model finds in the images.

Each kind has its own score, 0 to 1 (see `FINDING_KINDS`):

- ``label_missing``: the confidence of a detection that no label of any class overlaps with an IoU of 0.3, and that does
  not lie in a crowd.
- ``label_wrong_class``: the confidence of a detection of another class on a label, less that of the label's own class.
- ``label_misplaced``: confidence x (1 - IoU) of a detection of the label's class with an IoU of 0.3 to 0.5.
- ``label_not_found``: where nothing is found at all, the share of labels of the same class and size (COCO's ranges)
  that the model does find, so that what it cannot see anyway comes last.

A model has learnt the errors of its own training data in part, so images that it was not trained on tell more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.findings import Finding, Findings, paired_iou
from yolofleet.data.records import ImageRecord
from yolofleet.evaluation.average_precision import BoxTables
from yolofleet.evaluation.error_types import DUPLICATE, Outcomes
from yolofleet.evaluation.precision_recall import Integers

if TYPE_CHECKING:
    from yolofleet.data.content import CheckedSplit
    from yolofleet.evaluation.detector import Detector

LOWEST_CONFIDENCE = 0.05
"""A label without any detection above is not found."""
CONFIDENT = 0.5
FOUND_CONFIDENCE = 0.25
MATCH_IOU, TOUCH_IOU = 0.5, 0.3
LEAST_MARGIN = 0.25
SIZE_EDGES = (32.0**2, 96.0**2)
"""Areas between COCO's small, medium and large objects."""
BATCH_SIZE = 16

Detection = Mapping[str, Any]
Suspicion = tuple[str, float, tuple[int, ...], str, Detection | None]
"""Kind, score, positions of the labels, text, detection."""


def find_label_errors(
    detector: Detector,
    splits: Sequence[CheckedSplit],
    findings: Findings,
    *,
    max_pixels: int,
    num_threads: int = 1,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Run a model over all images that can be used, and add the labels that disagree with it.

    Args:
        detector: The model; its classes are matched to those of the datasets by id and name, or else by name.
        splits: The datasets.
        findings: Where they are added.
        max_pixels: Larger images are left out.
        num_threads: Images decoded at once.
        progress: Called for every batch with its number of images.

    Raises:
        UserError: Model and dataset have no class in common.
    """
    from yolofleet.evaluation.evaluate import category_ids_for

    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        for number, split in enumerate(splits):
            report = split.report
            ids = category_ids_for(detector.classes, [(entry.id, entry.name) for entry in report.classes])
            positions = {entry.id: index for index, entry in enumerate(report.classes)}
            index_of = {
                model_id: positions[category_id]
                for (model_id, _), category_id in zip(detector.classes, ids, strict=True)
                if category_id is not None
            }
            names = [entry.name for entry in report.classes]
            recall = np.ones((len(names), len(SIZE_EDGES) + 1, 2)) * (1, 2)  # found and all, begun with 1 of 2
            unfound: list[tuple[int, int]] = []
            for start in range(0, len(report.records), BATCH_SIZE):
                batch = range(start, min(start + BATCH_SIZE, len(report.records)))
                pixels = list(pool.map(lambda image: split.read(image, max_pixels), batch))  # noqa: B023 - used at once
                read = [(image, entry) for image, entry in zip(batch, pixels, strict=True) if entry is not None]
                predicted = detector.predict([entry for _, entry in read], confidence=LOWEST_CONFIDENCE)
                for (image, _), detections in zip(read, predicted, strict=True):
                    known = [entry for entry in detections if entry["category_id"] in index_of]
                    found = np.array([index_of[entry["category_id"]] for entry in known], dtype=np.int64)
                    comparison = LabelComparison(report.records[image], known, found, set(index_of.values()))
                    for kind, score, labels, text, detection in comparison.suspicions(names):
                        findings.add(kind, Finding(score, number, image, labels, text, dict(detection or {}) or None))
                    unfound += [(image, label) for label in comparison.count_found(recall)]
                progress(len(batch))
            for image, label in unfound:
                record = report.records[image]
                name, size = int(record.classes[label]), _size_range(record.boxes[label])
                share = float(recall[name, size, 0] / recall[name, size, 1])
                text = f"{names[name]}: nothing found here; {share:.0%} of such labels are found"
                findings.add("label_not_found", Finding(share, number, image, (label,), text))


def likely_label_errors(tables: BoxTables, outcomes: Outcomes, most: int = 24) -> tuple[dict[str, Any], ...]:
    """Return labels that the confident detections of an evaluation speak against, the highest scores first.

    Args:
        tables: The boxes.
        outcomes: What became of them.
        most: Findings returned.

    Returns:
        Of each: kind, score, image_id, text, label (the box in the annotations, None where it is missing), and
        detection (the box found instead).
    """
    names = [tables.names[category_id] for category_id in tables.category_ids.tolist()]
    # A second detection of an object says the same as its label.
    speaks_against = outcomes.is_false & (outcomes.kinds != DUPLICATE)
    confident = np.flatnonzero(speaks_against & (tables.scores >= CONFIDENT))
    confident = confident[np.argsort(-tables.scores[confident], kind="stable")]
    images, first = np.unique(outcomes.images[confident], return_index=True)
    by_image = [_rows_by_image(column, len(tables.image_ids)) for column in (outcomes.images, outcomes.object_images)]
    found: list[dict[str, Any]] = []
    for at in np.argsort(first):
        # A finding scores no more than its detection, so images whose best one is below those found need no look.
        best = tables.scores[confident[first[at]]]
        if len(found) >= most and found[most - 1]["score"] >= best:
            break
        rows, labels = (order[edges[images[at]] : edges[images[at] + 1]] for order, edges in by_image)
        rows = rows[tables.scores[rows] >= LOWEST_CONFIDENCE]
        boxes = tables.truth.boxes[labels]
        record = ImageRecord(
            image_id=int(tables.image_ids[images[at]]),
            file_name="",
            width=0,
            height=0,
            boxes=boxes,
            classes=outcomes.object_classes[labels],
            iscrowd=tables.truth.crowds[labels],
            areas=tables.truth.areas[labels],
            segmentations=(None,) * len(labels),
        )
        detections = [
            {"bbox": box, "score": score}
            for box, score in zip(tables.detected.boxes[rows].tolist(), tables.scores[rows].tolist(), strict=True)
        ]
        comparison = LabelComparison(record, detections, outcomes.classes[rows], set(range(len(names))))
        for kind, score, positions, text, detection in comparison.suspicions(names):
            label = boxes[positions[0]].tolist() if positions else None
            box = detection["bbox"] if detection else None
            entry = {"kind": kind, "score": score, "image_id": record.image_id}
            found.append({**entry, "text": text, "label": label, "detection": box})
        found = sorted(found, key=lambda entry: -entry["score"])[:most]
    return tuple(found)


def _rows_by_image(images: Integers, num_images: int) -> tuple[Integers, Integers]:
    """Return rows in the order of their images, and where each image (and the one after the last) begins."""
    order = np.argsort(images, kind="stable")
    return order, np.searchsorted(images[order], np.arange(num_images + 1))


class LabelComparison:
    """The labels of an image beside the detections of a model.

    Args:
        record: The labels.
        detections: What was found, in classes of the dataset.
        classes: (d,) class index of each detection.
        known: Class indices that the model knows; labels of other classes only cover what they overlap.
    """

    def __init__(
        self, record: ImageRecord, detections: Sequence[Detection], classes: NDArray[np.int64], known: set[int]
    ) -> None:
        self._record = record
        self._detections = detections
        self._classes = classes
        boxes = np.array([entry["bbox"] for entry in detections], dtype=np.float64).reshape(-1, 4)
        self._scores = np.array([entry["score"] for entry in detections], dtype=np.float64)
        self._iou = paired_iou(record.boxes[:, None], boxes[None])  # (n, d)
        self._iou[record.iscrowd] = 0
        self._is_same = record.classes[:, None] == classes[None]  # (n, d)
        self._labels = [
            label for label in np.flatnonzero(~record.iscrowd).tolist() if int(record.classes[label]) in known
        ]
        self._in_crowd = _covered(boxes, record.boxes[record.iscrowd]) >= MATCH_IOU
        self._explained = (self._is_same & (self._iou >= MATCH_IOU)).any(axis=0)  # (d,) a label says the same

    def suspicions(self, names: Sequence[str]) -> Iterator[Suspicion]:
        """Yield labels that are missing, of a wrong class, or misplaced."""
        confident = (self._scores >= CONFIDENT) & ~self._explained
        free = confident & ~(self._iou >= TOUCH_IOU).any(axis=0) & ~self._in_crowd
        for row in np.flatnonzero(free).tolist():
            text = f"no label: {names[self._classes[row]]} found with {self._scores[row]:.2f}"
            yield "label_missing", float(self._scores[row]), (), text, self._detections[row]
        for label in self._labels:
            name, same, iou = names[self._record.classes[label]], self._is_same[label], self._iou[label]
            own = self._scores[same & (iou >= MATCH_IOU)].max(initial=0.0)
            others = np.where(confident & ~same & (iou >= MATCH_IOU), self._scores, 0.0)
            if others.max(initial=0.0) - own >= LEAST_MARGIN:
                row = int(others.argmax())
                text = f"{name}: found as {names[self._classes[row]]} with {others[row]:.2f}, as {name} with {own:.2f}"
                yield "label_wrong_class", float(others[row] - own), (label,), text, self._detections[row]
            moved = np.where(confident & same & (iou >= TOUCH_IOU), self._scores * (1 - iou), 0.0)
            if own == 0 and moved.max(initial=0.0) > 0:
                row = int(moved.argmax())
                text = f"{name}: found with {self._scores[row]:.2f} at IoU {iou[row]:.2f}"
                yield "label_misplaced", float(moved[row]), (label,), text, self._detections[row]

    def count_found(self, recall: NDArray[np.float64]) -> list[int]:
        """Count the labels and those found, by class and size, and return those where nothing at all was found."""
        unfound = []
        for label in self._labels:
            cell = recall[self._record.classes[label], _size_range(self._record.boxes[label])]
            good = self._is_same[label] & (self._iou[label] >= MATCH_IOU) & (self._scores >= FOUND_CONFIDENCE)
            cell += (good.any(), 1)
            if not (self._iou[label] >= TOUCH_IOU).any():
                unfound.append(label)
        return unfound


def _covered(boxes: NDArray[np.float64], regions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (d,) the largest share of each box that lies in one of the regions."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], regions[None, :, :2] + regions[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    return np.asarray((shared / np.maximum(boxes[:, None, 2:].prod(axis=-1), 1e-12)).max(axis=1, initial=0.0))


def _size_range(box: NDArray[np.float64]) -> int:
    return int(np.searchsorted(SIZE_EDGES, box[2] * box[3], side="right"))
