"""Matches of detections and objects by image: for the bootstrap, and for the images on which two detectors differ most.

Matching is inside one image. So what depends on the drawn images or on the pair of detectors can be computed from
matches that are made once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.evaluation.detections import Detections, detection_boxes, ground_truth_boxes
from yolofleet.evaluation.precision_recall import (
    ALL,
    IOU_50,
    Booleans,
    Integers,
    match,
    outside_ranges,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassMatches:
    """The matches of one class; T IoU thresholds, A size ranges.

    Attributes:
        images: (D,) index of the image of each detection, best score first.
        in_range: (D, A) bool; whether its own size counts.
        positions: (P,) among the D, of the detections that match an object at any threshold.
        matched: (P, T, A) bool; whether it matches one.
        hits: (P, T, A) bool; whether that object counts.
        ranks: (P,) its position among the detections of its image and class.
        object_images: (G,) index of the image of each object.
        object_counts: (G, A) bool; whether the object counts.
    """

    images: Integers
    in_range: Booleans
    positions: Integers
    matched: Booleans
    hits: Booleans
    ranks: Integers
    object_images: Integers
    object_counts: Booleans


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matches:
    """The matched detections of a dataset.

    Attributes:
        image_ids: (I,) ascending.
        class_names: By category id, in the order of the ids.
        classes: One entry a class.
    """

    image_ids: Integers
    class_names: Mapping[int, str]
    classes: tuple[ClassMatches, ...]


def match_images(ground_truth: Mapping[str, Any], detections: Detections) -> Matches:
    """Match the detections of a dataset, once for any number of replicates.

    Args:
        ground_truth: A COCO document.
        detections: Detections in its images.
    """
    image_ids = np.unique(np.array([image["id"] for image in ground_truth["images"]], np.int64))
    if not len(image_ids):
        raise UserError("the dataset holds no images: there is nothing to compare on")
    names = {int(category["id"]): str(category["name"]) for category in ground_truth["categories"]}
    category_ids = np.array(sorted(names), np.int64)
    truth = ground_truth_boxes(ground_truth["annotations"], image_ids, category_ids)
    detected, scores = detection_boxes(detections, image_ids, category_ids)
    matching = match(truth, detected)
    matched, ignored = matching.matched, matching.ignored  # (D, T, A)
    in_range = ~outside_ranges(detected.areas)
    counted = ~(truth.crowds[:, None] | outside_ranges(truth.areas))
    edges = np.arange(len(category_ids) + 1) * len(image_ids)
    truth_edges, detected_edges = np.searchsorted(truth.groups, edges), np.searchsorted(detected.groups, edges)
    classes = []
    for k in range(len(category_ids)):
        rows = np.arange(detected_edges[k], detected_edges[k + 1])
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        positions = np.flatnonzero(matched[rows].any(axis=(1, 2)))
        objects = slice(truth_edges[k], truth_edges[k + 1])
        classes.append(
            ClassMatches(
                images=detected.groups[rows] - edges[k],
                in_range=in_range[rows],
                positions=positions,
                matched=matched[rows[positions]],
                hits=matched[rows[positions]] & ~ignored[rows[positions]],
                ranks=detected.ranks[rows[positions]],
                object_images=truth.groups[objects] - edges[k],
                object_counts=counted[objects],
            )
        )
    return Matches(
        image_ids=image_ids, class_names={number: names[number] for number in sorted(names)}, classes=tuple(classes)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """One image and the mistakes of two detectors in it, at IoU 0.50.

    Attributes:
        image_id: The image.
        first_missed: Objects that the first detector misses.
        first_false: Detections of it that match no object.
        second_missed: The same of the second.
        second_false: The same of the second.
    """

    image_id: int
    first_missed: int
    first_false: int
    second_missed: int
    second_false: int

    @property
    def fewer_mistakes(self) -> int:
        """Mistakes of the first detector less those of the second."""
        return self.first_missed + self.first_false - self.second_missed - self.second_false


def disagreements(
    ground_truth: Mapping[str, Any], first: Detections, second: Detections, *, count: int, confidence: float = 0.25
) -> list[Disagreement]:
    """Return the images on which two detectors differ, the largest differences first.

    Args:
        ground_truth: A COCO document.
        first: Detections of the first detector.
        second: Detections of the second detector.
        count: Most images returned.
        confidence: Lowest score of a detection that counts.
    """
    image_ids = np.unique(np.array([image["id"] for image in ground_truth["images"]], np.int64))
    above = (detections.select(detections.scores >= confidence) for detections in (first, second))
    mistakes = [_mistakes(ground_truth, detections, image_ids) for detections in above]
    fewer = mistakes[0].sum(axis=1) - mistakes[1].sum(axis=1)  # (I,)
    order = np.argsort(-np.abs(fewer), kind="stable")[:count]
    return [
        Disagreement(
            image_id=int(image_ids[index]),
            first_missed=int(mistakes[0][index, 0]),
            first_false=int(mistakes[0][index, 1]),
            second_missed=int(mistakes[1][index, 0]),
            second_false=int(mistakes[1][index, 1]),
        )
        for index in order
        if fewer[index]
    ]


def _mistakes(ground_truth: Mapping[str, Any], detections: Detections, image_ids: Integers) -> Integers:
    """Return the objects missed and the false detections of each image, (I, 2)."""
    category_ids = np.array(sorted(category["id"] for category in ground_truth["categories"]), np.int64)
    truth = ground_truth_boxes(ground_truth["annotations"], image_ids, category_ids)
    detected, _ = detection_boxes(detections, image_ids, category_ids)
    matching = match(truth, detected)
    matched, ignored = (flags[:, IOU_50, ALL] for flags in (matching.matched, matching.ignored))
    num_images = len(image_ids)

    def per_image(groups: Integers) -> Integers:
        return np.bincount(groups % num_images, minlength=num_images)

    missed = per_image(truth.groups[~truth.crowds]) - per_image(detected.groups[matched & ~ignored])
    return np.stack((missed, per_image(detected.groups[~matched & ~ignored])), axis=1)
