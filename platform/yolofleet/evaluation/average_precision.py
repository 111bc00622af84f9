"""COCO average precision: the twelve figures, the figures of each class, and the precision-recall curves.

The figures equal pycocotools' to the last digit, crowds included: the same numbers are summed in the same order.
(faster-coco-eval leaves out a rounding term in the precision and differs in the last digit.) Two things differ from a
direct use of pycocotools: objects are numbered here, because there annotation id 0 means "unmatched" and such an object
is never matched; and a figure with nothing to measure (no object of a size, no ground truth at all) is None, not -1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.evaluation.detections import BoxTable, Detections, detection_boxes, ground_truth_boxes
from yolofleet.evaluation.precision_recall import (
    ALL,
    IOU_50,
    IOU_75,
    NOT_MEASURED,
    Curves,
    Floats,
    Integers,
    precision_recall,
)
from yolofleet.evaluation.protocol import COCO_PROTOCOL, Protocol
from yolofleet.evaluation.result_records import Note

Figures = dict[str, float | None]

ANY_CLASS = -1
"""The id of the one row of a class-agnostic evaluation, as in pycocotools."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFigures:
    """The figures of one class.

    Attributes:
        category_id: Its id in the dataset's annotations.
        name: Its name.
        num_objects: Ground truth, crowds left out.
        num_detections: Detections given.
        ap: Mean over the ten IoU thresholds; None where the class has no object.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
        average_recall: Recall with at most 100 detections an image, or as many as the protocol allows.
        best_f1: The best harmonic mean of precision and recall at IoU 0.50 that a threshold reaches.
        best_confidence: That threshold: detections of this score and above count; None where no object of the class
            was detected.
    """

    category_id: int
    name: str
    num_objects: int
    num_detections: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    average_recall: float | None
    best_f1: float | None
    best_confidence: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragePrecision:
    """The evaluation of a set of detections.

    Attributes:
        figures: The twelve COCO figures by name; None where there was nothing to measure.
        per_class: One entry a category, in the order of their ids.
        curves: Category id -> precision at IoU 0.50 at the 101 recall levels 0, 0.01 ... 1 (empty: no object).
        num_images: Images evaluated, with and without objects.
        num_objects: Ground truth, crowds left out.
        num_crowds: Crowd regions, where detections count neither way.
        num_detections: Detections evaluated.
        num_unreachable: Objects beyond the detections that count: of a class with 300 in one image, 200 at the default.
        protocol: How they were evaluated.
    """

    figures: Figures
    per_class: tuple[ClassFigures, ...]
    curves: Mapping[int, tuple[float, ...]]
    num_images: int
    num_objects: int
    num_crowds: int
    num_detections: int
    num_unreachable: int = 0
    protocol: Protocol = COCO_PROTOCOL

    def as_json(self) -> dict[str, Any]:
        """Return figures, classes and counts as plain JSON values (without the curves)."""
        counts = {name: getattr(self, name) for name in ("num_images", "num_objects", "num_crowds", "num_detections")}
        recall_key = f"ar_{self.protocol.max_detections}"
        per_class = [
            {recall_key if key == "average_recall" else key: value for key, value in asdict(entry).items()}
            for entry in self.per_class
        ]
        protocol = {} if self.protocol == COCO_PROTOCOL else {"protocol": self.protocol.as_json()}
        return {"figures": self.figures, "per_class": per_class, **counts, **protocol}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BoxTables:
    """An evaluation's boxes in groups; the group of class k in image i is k x images + i.

    Attributes:
        image_ids: (I,) ascending.
        category_ids: (K,) ascending.
        names: Of the classes by category id.
        truth: The objects of these images and classes.
        detected: Detections of these classes, as many as the protocol lets count.
        scores: (D,) of the detections in `detected`.
        detections: All detections of the protocol's classes, as they were given.
    """

    image_ids: Integers
    category_ids: Integers
    names: Mapping[int, str]
    truth: BoxTable
    detected: BoxTable
    scores: Floats
    detections: Detections


def box_tables(
    ground_truth: Mapping[str, Any], detections: Detections, protocol: Protocol = COCO_PROTOCOL
) -> BoxTables:
    """Return ground truth and detections as `coco_average_precision` compares them; it raises what that raises."""
    image_ids = np.unique(np.array([image["id"] for image in ground_truth["images"]], np.int64))
    names = protocol.select(ground_truth["categories"])
    category_ids = np.array(sorted(names), np.int64)
    _check_images(detections, image_ids)
    if protocol.classes or protocol.class_agnostic:
        detections = detections.select(np.isin(detections.category_ids, category_ids))
    truth = ground_truth_boxes(ground_truth["annotations"], image_ids, category_ids, protocol.class_agnostic)
    detected, scores = detection_boxes(detections, image_ids, category_ids, protocol)
    if protocol.class_agnostic:
        names, category_ids = {ANY_CLASS: "any class"}, np.array([ANY_CLASS])
        detections = replace(detections, category_ids=np.full(len(detections), ANY_CLASS))
    return BoxTables(
        image_ids=image_ids,
        category_ids=category_ids,
        names=names,
        truth=truth,
        detected=detected,
        scores=scores,
        detections=detections,
    )


def coco_average_precision(
    ground_truth: Mapping[str, Any],
    detections: Detections | Sequence[Mapping[str, Any]],
    protocol: Protocol = COCO_PROTOCOL,
) -> AveragePrecision:
    """Evaluate detections as pycocotools does.

    Args:
        ground_truth: A COCO document: `images` (id), `categories` (id, name), `annotations` (image_id, category_id,
            bbox x, y, w, h in pixels; area: w x h unless given; iscrowd: 0 unless given). Ids need not be unique.
        detections: `Detections`, or COCO result records: image_id, category_id, bbox x, y, w, h in pixels, score.
        protocol: Numbers of detections, sizes and classes that are evaluated.

    Returns:
        The figures, the classes and the curves. Images without annotations count: detections there are wrong.

    Raises:
        UserError: A record is malformed, or names an image that the ground truth does not have.
    """
    if not isinstance(detections, Detections):
        detections = Detections.from_records(detections)
    tables = box_tables(ground_truth, detections, protocol)
    image_ids, category_ids, names = tables.image_ids, tables.category_ids, tables.names
    truth, detections = tables.truth, tables.detections
    num_images, num_classes = len(image_ids), len(category_ids)
    curves = precision_recall(
        truth, tables.detected, tables.scores, num_images=num_images, num_classes=num_classes, protocol=protocol
    )
    _, group_counts = np.unique(truth.groups[~truth.crowds], return_counts=True)
    object_classes, object_counts = np.unique(truth.groups[~truth.crowds] // max(num_images, 1), return_counts=True)
    detected_ids, detection_counts = np.unique(detections.category_ids, return_counts=True)
    num_objects = dict(zip(category_ids[object_classes].tolist(), object_counts.tolist(), strict=True))
    num_detections = dict(zip(detected_ids.tolist(), detection_counts.tolist(), strict=True))
    return AveragePrecision(
        figures=_figures(curves, protocol),
        per_class=tuple(
            _class_figures(
                curves,
                position,
                category_id=category_id,
                name=names[category_id],
                num_objects=num_objects.get(category_id, 0),
                num_detections=num_detections.get(category_id, 0),
            )
            for position, category_id in enumerate(category_ids.tolist())
        ),
        curves={
            category_id: _curve(curves.precision[IOU_50, :, position, ALL])
            for position, category_id in enumerate(category_ids.tolist())
        },
        num_images=num_images,
        num_objects=int((~truth.crowds).sum()),
        num_crowds=int(truth.crowds.sum()),
        num_detections=len(detections),
        num_unreachable=int(np.maximum(group_counts - protocol.max_detections, 0).sum()),
        protocol=protocol,
    )


def _check_images(detections: Detections, image_ids: Integers) -> None:
    unknown = np.flatnonzero(~np.isin(detections.image_ids, image_ids))
    if len(unknown):
        raise UserError(
            f"detection {unknown[0] + 1} of {len(detections)}: image_id {detections.image_ids[unknown[0]]} is not an "
            f"image of this dataset ({plural(len(image_ids), 'image')}); are the detections of another dataset?"
        )


def _figures(curves: Curves, protocol: Protocol) -> Figures:
    """Return the figures in COCO's order."""
    precision, recall = curves.precision, curves.recall
    sizes = range(ALL + 1, precision.shape[-1])
    values = [
        _mean(precision[:, :, :, ALL]),
        _mean(precision[IOU_50, :, :, ALL]),
        _mean(precision[IOU_75, :, :, ALL]),
        *(_mean(precision[:, :, :, size]) for size in sizes),
        *(_mean(recall[:, :, ALL, allowed]) for allowed in range(recall.shape[-1])),
        *(_mean(recall[:, :, size, -1]) for size in sizes),
    ]
    return dict(zip(protocol.figure_names, values, strict=True))


def _class_figures(
    curves: Curves, position: int, *, category_id: int, name: str, num_objects: int, num_detections: int
) -> ClassFigures:
    """Return the figures of the class at a position of the curves."""
    precision = curves.precision[:, :, position, ALL]  # (T, R)
    best_f1, best_confidence = float(curves.best_f1[position]), float(curves.best_scores[position])
    return ClassFigures(
        category_id=category_id,
        name=name,
        num_objects=num_objects,
        num_detections=num_detections,
        ap=_mean(precision),
        ap50=_mean(precision[IOU_50]),
        ap75=_mean(precision[IOU_75]),
        average_recall=_mean(curves.recall[:, position, ALL, -1]),
        best_f1=None if best_f1 == NOT_MEASURED else best_f1,
        best_confidence=None if math.isnan(best_confidence) else best_confidence,
    )


def _mean(values: Floats) -> float | None:
    """Return the mean of the measured values, summed in pycocotools' order; None where there are none."""
    measured = values[values > NOT_MEASURED]
    return float(np.mean(measured)) if measured.size else None


def _curve(precision: Floats) -> tuple[float, ...]:
    """Return a precision curve (R,) as numbers; empty where the class has no object."""
    return tuple(precision.tolist()) if (precision > NOT_MEASURED).all() else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Figures and detections of a model, or of a file of detections, on a dataset.

    Attributes:
        average_precision: Figures, classes and curves.
        ground_truth: The annotations, as a COCO document.
        detections: The detections evaluated, as in a COCO result file.
        skipped: (key, reason) of each image that could not be read; it counts as one without detections, or not at all
            where its annotation is damaged.
        notes: What was repaired, left out or is doubtful in a file of detections.
    """

    average_precision: AveragePrecision
    ground_truth: Mapping[str, Any]
    detections: Detections
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[Note, ...] = ()

    def __repr__(self) -> str:
        shown = (f"{key} {'none' if value is None else f'{value:.4f}'}" for key, value in self.figures.items())
        return f"Evaluation on {plural(self.num_images, 'image')}, {len(self.skipped)} skipped: {', '.join(shown)}"

    @property
    def figures(self) -> Figures:
        """The twelve COCO figures by name; None where there was nothing to measure."""
        return self.average_precision.figures

    @property
    def per_class(self) -> tuple[ClassFigures, ...]:
        """The figures of each class."""
        return self.average_precision.per_class

    @property
    def num_images(self) -> int:
        """Images evaluated, skipped ones included."""
        return self.average_precision.num_images

    def as_json(self) -> dict[str, Any]:
        """Return everything but curves and detections as plain JSON values."""
        skipped = [{"key": key, "reason": reason} for key, reason in self.skipped]
        notes = {"notes": [asdict(note) for note in self.notes]} if self.notes else {}
        return {**self.average_precision.as_json(), "skipped": skipped, **notes}

    def page_document(self) -> dict[str, Any]:
        """Return what a page shows as plain JSON values: `as_json`, and the curves by category id."""
        found = self.average_precision
        curves = {str(key): [round(value, 4) for value in curve] for key, curve in found.curves.items()}
        return {**self.as_json(), "curves": curves, "max_detections": found.protocol.max_detections}
