"""Why detections are false and objects are missed, and what each kind of error costs in AP.

The taxonomy is that of TIDE (Bolya et al., ECCV 2020, arXiv:2008.08115, section 2). At IoU 0.50 a detection that
matches no object is false for one reason, the first that holds:

- ``localisation``: it overlaps an object of its class, but only by an IoU of 0.1 to 0.5.
- ``classification``: it lies on an object of another class, by an IoU of 0.5 or more.
- ``duplicate``: it lies on an object of its class that a detection of a higher score has matched.
- ``background``: it overlaps no object by an IoU of 0.1.
- ``both``: it overlaps an object of another class by less than 0.5: class and box are wrong.

An object is ``missed`` where no detection matches it, and no error of class or box explains that.

The cost of a kind is what AP at IoU 0.50 gains when all errors of the kind are mended, and nothing else. A wrong class
or box is put right; where an object then has two detections, only the one of the higher score stays. The other false
detections are taken away, and so are missed objects. Costs do not add up: mending one kind changes what others cost.
With all kinds mended AP is 1.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.evaluation.average_precision import BoxTables
from yolofleet.evaluation.detections import BoxTable
from yolofleet.evaluation.precision_recall import (
    ALL,
    IOU_50,
    Booleans,
    Floats,
    Integers,
    Matching,
    Pairs,
    overlapping_pairs,
    precision_at_recall,
)

ERROR_KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
ERROR_PHRASES = {
    "classification": "boxes with the wrong class",
    "localisation": "boxes too far from their objects",
    "both": "boxes with the wrong class that are also too far off",
    "duplicate": "second boxes on one object",
    "background": "boxes where no object is",
    "missed": "objects with no box of their class on or near them",
}
ERROR_MEANINGS = {
    "classification": "a box on an object of another class",
    "localisation": "a box near an object of its class, IoU 0.1 to 0.5",
    "both": "a box near an object of another class, IoU 0.1 to 0.5",
    "duplicate": "a box on an object that a more confident box has found",
    "background": "a box on no object",
    "missed": "an object with no box of its class near it, and none of another class on it",
}
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(ERROR_KINDS))
TRUE, IGNORED = -1, -2
"""A detection that is no error: it matches an object, or counts neither way."""
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcomes:
    """What became of D detections at IoU 0.50, whatever their size.

    Attributes:
        kinds: (D,) one of `ERROR_KINDS` by its position, TRUE or IGNORED.
        objects: (D,) the object that a true detection matches, or that one of a wrong class or box is on; -1: none.
        order: (D,) the detections, the best score first.
        classes: (D,) index of the class of each detection.
        images: (D,) index of the image of each detection.
        object_classes: (G,) index of the class of each object.
        object_images: (G,) index of the image of each object.
        counted: (G,) bool; False for crowds.
    """

    kinds: NDArray[np.int8]
    objects: Integers
    order: Integers
    classes: Integers
    images: Integers
    object_classes: Integers
    object_images: Integers
    counted: Booleans

    @property
    def is_false(self) -> Booleans:
        """(D,) whether a detection is an error."""
        return self.kinds >= 0

    def found(self, above: Booleans) -> Booleans:
        """Return (G,): whether one of the detections (D,) bool matches the object."""
        return self._hit(above & (self.kinds == TRUE))

    def missed(self, above: Booleans) -> Booleans:
        """Return (G,): whether an object counts as missed, if only some detections (D,) bool are taken."""
        explained = np.isin(self.kinds, (TRUE, CLASSIFICATION, LOCALISATION))
        return self.counted & ~self._hit(above & explained)

    def _hit(self, rows: Booleans) -> Booleans:
        hit = np.zeros(len(self.counted), bool)
        hit[self.objects[rows]] = True
        return hit


def find_outcomes(tables: BoxTables, matching: Matching) -> Outcomes:
    """Return what became of each detection, and why it is false."""
    num_images = max(len(tables.image_ids), 1)
    truth, detected = tables.truth, tables.detected
    classes, object_classes = detected.groups // num_images, truth.groups // num_images
    matched, ignored = matching.matched[:, IOU_50, ALL], matching.ignored[:, IOU_50, ALL]
    false = ~matched & ~ignored
    rows, objects, overlaps = pairs_in_images(tables, false, ~truth.crowds, BACKGROUND_IOU)
    is_own = object_classes[objects] == classes[rows]
    own, own_object = _best(rows[is_own], objects[is_own], overlaps[is_own], len(false))
    other, other_object = _best(rows[~is_own], objects[~is_own], overlaps[~is_own], len(false))
    reasons = [
        ignored,
        matched,
        (own >= BACKGROUND_IOU) & (own < FOREGROUND_IOU),
        other >= FOREGROUND_IOU,
        own >= FOREGROUND_IOU,
        other >= BACKGROUND_IOU,
    ]
    kinds = np.select(reasons, [IGNORED, TRUE, LOCALISATION, CLASSIFICATION, DUPLICATE, BOTH], BACKGROUND)
    on_objects = [matching.objects, own_object, other_object]
    return Outcomes(
        kinds=kinds.astype(np.int8),
        objects=np.select([kinds == TRUE, kinds == LOCALISATION, kinds == CLASSIFICATION], on_objects, -1),
        order=np.argsort(-tables.scores, kind="stable"),
        classes=classes,
        images=detected.groups % num_images,
        object_classes=object_classes,
        object_images=truth.groups % num_images,
        counted=~truth.crowds,
    )


def pairs_in_images(tables: BoxTables, detections: Booleans, objects: Booleans, least_iou: float) -> Pairs:
    """Return the pairs of some detections (D,) and some objects (G,) of an image that reach an IoU, of any classes."""
    by_image, object_rows = _by_image(tables, tables.truth, objects)
    others, detection_rows = _by_image(tables, tables.detected, detections)
    of_detection, of_object, overlaps = overlapping_pairs(by_image, others, least_iou)
    return detection_rows[of_detection], object_rows[of_object], overlaps


def _by_image(tables: BoxTables, table: BoxTable, chosen: Booleans) -> tuple[BoxTable, Integers]:
    """Return the chosen boxes with their images as groups, and their rows in the table."""
    images = table.groups % max(len(tables.image_ids), 1)
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(images[rows], kind="stable")]
    return BoxTable(
        groups=images[rows],
        boxes=table.boxes[rows],
        areas=table.areas[rows],
        crowds=table.crowds[rows],
        ranks=table.ranks[rows],
    ), rows


def _best(rows: Integers, objects: Integers, overlaps: Floats, count: int) -> tuple[Floats, Integers]:
    """Return the largest IoU (N,) of each row, 0 where it has none, and its object; of equal ones the last object."""
    order = np.lexsort((objects, overlaps, rows))
    last = order[np.append(np.diff(rows[order]) > 0, True)] if len(order) else order
    best, best_object = np.zeros(count), np.full(count, -1)
    best[rows[last]], best_object[rows[last]] = overlaps[last], objects[last]
    return best, best_object


def mended_ap50(tables: BoxTables, outcomes: Outcomes, kinds: Collection[int]) -> Floats:
    """Return AP at IoU 0.50 of each class (K,) with all errors of some kinds mended; NaN where it has no objects.

    Args:
        tables: The boxes.
        outcomes: What became of them.
        kinds: Of errors, by their positions in `ERROR_KINDS`; none: AP as it is.
    """
    num_classes = len(tables.category_ids)
    is_counted = outcomes.kinds != IGNORED
    hits, classes = outcomes.kinds == TRUE, outcomes.classes
    put_right = np.isin(outcomes.kinds, [kind for kind in kinds if kind in (CLASSIFICATION, LOCALISATION)])
    if put_right.any():
        hits = hits | put_right
        rows = np.flatnonzero(hits)
        # Of the detections on an object the one of the highest score stays; among equals one that matched it already.
        rows = rows[np.lexsort((rows, put_right[rows], -tables.scores[rows], outcomes.objects[rows]))]
        is_later = np.diff(outcomes.objects[rows], prepend=-1) == 0
        is_counted[rows[is_later]] = False
        classes = np.where(put_right, outcomes.object_classes[outcomes.objects], classes)
    taken_away = np.isin(outcomes.kinds, [kind for kind in kinds if kind in (BOTH, DUPLICATE, BACKGROUND)])
    is_counted &= ~taken_away
    num_objects = np.bincount(outcomes.object_classes[outcomes.counted], minlength=num_classes)
    is_measured = num_objects > 0
    if MISSED in kinds:
        missed = outcomes.missed(np.ones(len(hits), bool))
        num_objects = num_objects - np.bincount(outcomes.object_classes[missed], minlength=num_classes)
    values = class_ap50(outcomes.order, classes, hits, is_counted, num_objects)
    # All objects of a class missed, and taken away: nothing is left to find.
    is_empty = is_measured & (num_objects == 0)
    values[is_empty] = np.bincount(classes[is_counted], minlength=num_classes)[is_empty] == 0
    return values


def by_class(rows: Integers, classes: Integers, num_classes: int) -> Integers:
    """Return rows of detections class by class, in each class in the order in which they are."""
    short = classes[rows].astype(np.min_scalar_type(num_classes))  # numpy sorts short numbers by counting them
    return rows[np.argsort(short, kind="stable")]


def class_ap50(
    order: Integers, classes: Integers, hits: Booleans, is_counted: Booleans, num_objects: Integers
) -> Floats:
    """Return AP at IoU 0.50 of each class; NaN where it has no objects.

    Args:
        order: (D,) the detections, the best score first.
        classes: (D,) index of the class of each.
        hits: (D,) whether it matches an object.
        is_counted: (D,) False where it counts neither way.
        num_objects: (K,) of each class.
    """
    rows = by_class(order[is_counted[order]], classes, len(num_objects))
    edges = np.searchsorted(classes[rows], np.arange(len(num_objects) + 1))
    values = np.full(len(num_objects), np.nan)
    for k in np.flatnonzero(num_objects):
        own = hits[rows[edges[k] : edges[k + 1]]][None]
        values[k] = precision_at_recall(own, ~own, num_objects[k])[0].mean()
    return values


def confusion_matrix(tables: BoxTables, outcomes: Outcomes, threshold: float) -> Integers:
    """Count which class objects are detected as.

    True detections are those of precision and recall. The others and the objects left over are paired by their IoU, the
    largest first, each at most once. What remains is missed, or a detection of background.

    Args:
        tables: The boxes.
        outcomes: What became of them.
        threshold: Lowest score that counts.

    Returns:
        (K + 1, K + 1): objects by class in rows, detections by class in columns; last is the background. Rows add up to
        the objects, columns to the detections; crowds, and detections in them, are left out.
    """
    num_classes = len(tables.category_ids)
    above = tables.scores >= threshold
    true = above & (outcomes.kinds == TRUE)
    of_object = np.full(len(outcomes.counted), num_classes)  # (G,) the class it is detected as
    of_object[outcomes.objects[true]] = outcomes.classes[true]
    is_free = outcomes.counted & ~outcomes.found(above)
    false = above & outcomes.is_false
    rows, objects, overlaps = pairs_in_images(tables, false, is_free, FOREGROUND_IOU)
    order = np.lexsort((objects, rows, -overlaps))
    is_unpaired = false.copy()
    for row, position in zip(rows[order].tolist(), objects[order].tolist(), strict=True):
        if is_unpaired[row] and is_free[position]:
            is_unpaired[row] = is_free[position] = False
            of_object[position] = outcomes.classes[row]
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (outcomes.object_classes[outcomes.counted], of_object[outcomes.counted]), 1)
    matrix[-1, :-1] = np.bincount(outcomes.classes[is_unpaired], minlength=num_classes)
    return matrix
