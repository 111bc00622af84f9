"""The confusion matrix of objects and detections at IoU 0.50, with the background."""

from __future__ import annotations

import numpy as np

from yolofleet.evaluation.average_precision import BoxTables
from yolofleet.evaluation.error_types import FOREGROUND_IOU, TRUE, Outcomes, pairs_in_images
from yolofleet.evaluation.precision_recall import Integers


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
