"""The diagnosis of an evaluation: what goes wrong, where, how much AP it costs, and which images show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from yolofleet.core.text import plural, share_text
from yolofleet.evaluation.average_precision import BoxTables, box_tables
from yolofleet.evaluation.confidence import Calibration, ConfidenceCurves, calibration, confidence_curves
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.error_types import (
    ERROR_KINDS,
    ERROR_PHRASES,
    MISSED,
    TRUE,
    Outcomes,
    confusion_matrix,
    find_outcomes,
    mended_ap50,
)
from yolofleet.evaluation.galleries import Gallery, ImageOutcomes
from yolofleet.evaluation.label_errors import likely_label_errors
from yolofleet.evaluation.precision_recall import Floats, Integers, match, pairs_by_round
from yolofleet.evaluation.protocol import COCO_PROTOCOL, Protocol
from yolofleet.evaluation.slices import Slice, Slicer

BACKGROUND_NAME = "background"
"""Of the last row and column of the confusion matrix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorType:
    """One kind of error.

    Attributes:
        kind: One of `ERROR_KINDS`.
        count: Errors of all detections; AP takes them all.
        count_above: Errors of the detections from the threshold on.
        cost: What AP50 gains when they are mended, 0 to 1; None where there are no objects.
    """

    kind: str
    count: int
    count_above: int
    cost: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassDiagnosis:
    """One class that has objects.

    Attributes:
        name: Of the class.
        ap50: AP at IoU 0.50.
        threshold: Where its own F1 is best; None where none of its objects is found.
        f1: There.
        precision: There.
        recall: There.
        costs: Kind of error -> what its AP50 gains when errors of that kind are mended in all classes.
    """

    name: str
    ap50: float
    threshold: float | None
    f1: float
    precision: float | None
    recall: float
    costs: Mapping[str, float]

    @property
    def main_error(self) -> str | None:
        """The kind that costs it most; None where none costs anything."""
        kind = max(self.costs, key=lambda kind: self.costs[kind])
        return kind if self.costs[kind] > 0 else None

    @property
    def weakness(self) -> str:
        """Its name, how weak it is, and why."""
        why = f", mainly {ERROR_PHRASES[self.main_error]}" if self.main_error else ""
        return f"{self.name} (AP50 {self.ap50:.3f}{why})"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Diagnosis:
    """What an evaluation shows besides AP; all at IoU 0.50.

    Attributes:
        summary: One sentence for people who know no AP.
        threshold: The confidence at which F1 over all classes is best, for what counts boxes; None: nothing is found.
        num_true: Detections from there on that match an object.
        num_false: Detections from there on that match none.
        num_not_found: Objects that none of them matches.
        errors: The kinds of errors, in the order of `ERROR_KINDS`.
        classes: Those with objects, the one with the lowest AP50 first.
        class_names: (K) of all classes, by their ids; none twice, and none that of the background.
        confusion: (K + 1, K + 1) of `confusion_matrix` at the threshold.
        curves: Precision, recall and F1 over the confidence.
        calibration: Of the detections from the threshold on; None where there are none or scores have a scale of
            their own.
        sizes: Slices by size of the objects.
        shapes: Slices by width over height.
        object_counts: Slices by the number of objects in the image.
        label_errors: Labels that a confident detection speaks against, the most likely errors first.
        galleries: Images that show it.
        images: Boxes to draw.
    """

    summary: str
    threshold: float | None
    num_true: int
    num_false: int
    num_not_found: int
    errors: tuple[ErrorType, ...]
    classes: tuple[ClassDiagnosis, ...]
    class_names: tuple[str, ...]
    confusion: Integers
    curves: ConfidenceCurves
    calibration: Calibration | None
    sizes: tuple[Slice, ...]
    shapes: tuple[Slice, ...]
    object_counts: tuple[Slice, ...]
    label_errors: tuple[dict[str, Any], ...]
    galleries: tuple[Gallery, ...]
    images: ImageOutcomes

    def as_json(self) -> dict[str, Any]:
        """Return everything but the curves of the single classes as plain JSON values."""
        names = [*self.class_names, BACKGROUND_NAME]
        cells = [
            {"object": names[row], "detection": names[column], "count": int(self.confusion[row, column])}
            for row, column in zip(*np.nonzero(self.confusion), strict=True)
        ]
        found = self.calibration
        bins = (
            {} if found is None else {key: _plain(getattr(found, key)) for key in ("counts", "confidence", "precision")}
        )
        curves = {key: _plain(getattr(self.curves, key)[0]) for key in ("precision", "recall", "f1")}
        slices = ("sizes", "shapes", "object_counts", "galleries")
        return {
            "summary": self.summary,
            "threshold": self.threshold,
            "class_names": list(self.class_names),
            **{key: getattr(self, key) for key in ("num_true", "num_false", "num_not_found")},
            "errors": [asdict(entry) for entry in self.errors],
            "classes": [{**asdict(entry), "main_error": entry.main_error} for entry in self.classes],
            "confusion": cells,
            "calibration": None if found is None else {"error": found.error, **bins},
            "curves": {"thresholds": _plain(self.curves.thresholds), **curves},
            **{key: [asdict(entry) for entry in getattr(self, key)] for key in slices},
            "label_errors": list(self.label_errors),
        }


def diagnose(ground_truth: Mapping[str, Any], detections: Detections, protocol: Protocol = COCO_PROTOCOL) -> Diagnosis:
    """Diagnose detections; 500,000 of them in 5,000 images take seconds.

    Args:
        ground_truth: A COCO document, as `coco_average_precision` takes it.
        detections: Of images of that document.
        protocol: Numbers of detections, sizes and classes that are evaluated.
    """
    tables = box_tables(ground_truth, detections, protocol)
    tables = replace(tables, names=_distinct(tables.names))
    pairs = pairs_by_round(tables.truth, tables.detected)
    matching = match(tables.truth, tables.detected, protocol.area_ranges, pairs)
    outcomes = find_outcomes(tables, matching)
    curves = confidence_curves(tables, outcomes)
    threshold = None if np.isnan(curves.best[0]) else float(curves.best[0])
    lowest = np.inf if threshold is None else threshold
    images = ImageOutcomes(tables, outcomes, lowest)
    slicer = Slicer(tables, outcomes, pairs, lowest)
    as_is = mended_ap50(tables, outcomes, ())
    gains = np.array([mended_ap50(tables, outcomes, [kind]) - as_is for kind in range(len(ERROR_KINDS))])
    errors = _error_types(tables, outcomes, gains, lowest)
    classes = _classes(tables, outcomes, as_is, gains, curves)
    counts = [int(flags.sum()) for flags in (images.is_true, images.is_false, images.is_not_found)]
    return Diagnosis(
        summary=_summary(counts, threshold, errors, classes, protocol),
        threshold=threshold,
        num_true=counts[0],
        num_false=counts[1],
        num_not_found=counts[2],
        errors=errors,
        classes=classes,
        class_names=tuple(tables.names[category_id] for category_id in tables.category_ids.tolist()),
        confusion=confusion_matrix(tables, outcomes, lowest),
        curves=curves,
        calibration=calibration(tables, outcomes, lowest),
        sizes=tuple(slicer.by_size(matching, protocol)),
        shapes=tuple(slicer.by_shape()),
        object_counts=tuple(slicer.by_object_count(matching)),
        label_errors=likely_label_errors(tables, outcomes),
        galleries=images.galleries({entry.name: entry.weakness for entry in classes}),
        images=images,
    )


def _distinct(names: Mapping[int, str]) -> dict[int, str]:
    """Return the names of classes, with their ids where a name alone would not say which is meant."""
    counts = Counter([BACKGROUND_NAME, *names.values()])
    return {number: name if counts[name] == 1 else f"{name} (id {number})" for number, name in names.items()}


def _error_types(tables: BoxTables, outcomes: Outcomes, gains: Floats, threshold: float) -> tuple[ErrorType, ...]:
    above = tables.scores >= threshold
    counts = []
    for taken in (np.ones(len(above), bool), above):
        kinds = outcomes.kinds[taken & outcomes.is_false]
        counts.append(np.bincount(kinds, minlength=len(ERROR_KINDS)))
        counts[-1][MISSED] = outcomes.missed(taken).sum()
    measured = ~np.isnan(gains[0])
    return tuple(
        ErrorType(
            kind=kind,
            count=int(counts[0][row]),
            count_above=int(counts[1][row]),
            cost=float(gains[row, measured].mean()) if measured.any() else None,
        )
        for row, kind in enumerate(ERROR_KINDS)
    )


def _classes(
    tables: BoxTables, outcomes: Outcomes, ap50: Floats, gains: Floats, curves: ConfidenceCurves
) -> tuple[ClassDiagnosis, ...]:
    """Return the classes with objects, the weakest first."""
    num_objects = np.bincount(outcomes.object_classes[outcomes.counted], minlength=len(tables.category_ids))
    best = curves.best[1:]
    above = tables.scores >= best[outcomes.classes]  # NaN: none
    true = np.bincount(outcomes.classes[above & (outcomes.kinds == TRUE)], minlength=len(best))
    false = np.bincount(outcomes.classes[above & outcomes.is_false], minlength=len(best))
    order = np.argsort(ap50, kind="stable")
    return tuple(
        ClassDiagnosis(
            name=tables.names[int(tables.category_ids[k])],
            ap50=float(ap50[k]),
            threshold=None if np.isnan(best[k]) else float(best[k]),
            f1=float(2 * true[k] / (true[k] + false[k] + num_objects[k])),
            precision=float(true[k] / (true[k] + false[k])) if true[k] + false[k] else None,
            recall=float(true[k] / num_objects[k]),
            costs={kind: float(gains[row, k]) for row, kind in enumerate(ERROR_KINDS)},
        )
        for k in order[: int((num_objects > 0).sum())].tolist()
    )


def _summary(
    counts: Sequence[int],
    threshold: float | None,
    errors: Sequence[ErrorType],
    classes: Sequence[ClassDiagnosis],
    protocol: Protocol,
) -> str:
    num_true, num_false, num_not_found = counts
    num_objects = num_true + num_not_found
    if not num_objects:
        which = " of these classes" if protocol.classes else ""
        return f"The annotations contain no objects{which}, so nothing could be measured."
    if threshold is None:
        return f"The model finds none of the {plural(num_objects, 'object')}: no box lies on an object of its class."
    parts = [
        f"The model finds {share_text(num_true / num_objects)} of the {plural(num_objects, 'object')}, and "
        f"{share_text(num_true / (num_true + num_false))} of its boxes are right (confidence "
        f"{share_text(threshold, decimals=2, kind='f')} and above)"
    ]
    worst = max(errors, key=lambda entry: entry.cost or 0.0)
    if worst.cost and worst.cost > 0:
        parts.append(
            f"; most is lost to {ERROR_PHRASES[worst.kind]} (without them AP50 would be {worst.cost:.3f} higher)"
        )
    if len(classes) > 1:
        parts.append(f"; the weakest class is {classes[0].weakness}")
    return "".join(parts) + "."


def _plain(values: Any) -> list[float | int | None]:
    """Return numbers for JSON: 4 decimals are seen, NaN is null."""
    return [None if value != value else round(value, 4) for value in values.tolist()]
