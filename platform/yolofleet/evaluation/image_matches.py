"""The detections of a dataset matched with its objects, class by class, ready to be weighed image by image.

The images on which two detectors differ most: by how many objects each misses there and how often each is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.precision_recall import (
    ALL,
    IOU_50,
    Booleans,
    Integers,
    detection_boxes,
    ground_truth_boxes,
    match,
    outside_ranges,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassMatches:
    """What matching has left of one class; T IoU thresholds, A size ranges.

    Attributes:
        images: (D,) place of the image of each detection, best score first.
        in_range: (D, A) bool; whether its own size counts.
        places: (P,) the detections that took an object at any threshold.
        matched: (P, T, A) bool; whether it took one.
        hits: (P, T, A) bool; whether that one counts.
        ranks: (P,) its place among the detections of its image and class.
        object_images: (G,) place of the image of each object.
        object_counts: (G, A) bool; whether the object counts.
    """

    images: Integers
    in_range: Booleans
    places: Integers
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
        detections: What was found in its images.
    """
    image_ids = np.unique(np.array([image["id"] for image in ground_truth["images"]], np.int64))
    if not len(image_ids):
        raise UserError("the dataset holds no images: there is nothing to compare on")
    names = {int(category["id"]): str(category["name"]) for category in ground_truth["categories"]}
    category_ids = np.array(sorted(names), np.int64)
    truth = ground_truth_boxes(ground_truth["annotations"], image_ids, category_ids)
    found, scores = detection_boxes(detections, image_ids, category_ids)
    matched, ignored = match(truth, found)  # (D, T, A)
    in_range = ~outside_ranges(found.areas)
    counted = ~(truth.crowds[:, None] | outside_ranges(truth.areas))
    edges = np.arange(len(category_ids) + 1) * len(image_ids)
    truth_edges, found_edges = np.searchsorted(truth.groups, edges), np.searchsorted(found.groups, edges)
    classes = []
    for k in range(len(category_ids)):
        rows = np.arange(found_edges[k], found_edges[k + 1])
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        places = np.flatnonzero(matched[rows].any(axis=(1, 2)))
        objects = slice(truth_edges[k], truth_edges[k + 1])
        classes.append(
            ClassMatches(
                images=found.groups[rows] - edges[k],
                in_range=in_range[rows],
                places=places,
                matched=matched[rows[places]],
                hits=matched[rows[places]] & ~ignored[rows[places]],
                ranks=found.ranks[rows[places]],
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
        first_missed: Objects that the first detector does not find.
        first_false: Detections of it that are no object.
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
        """How many mistakes fewer the second one makes; negative where it makes more."""
        return self.first_missed + self.first_false - self.second_missed - self.second_false


def disagreements(
    ground_truth: Mapping[str, Any], first: Detections, second: Detections, *, count: int, confidence: float = 0.25
) -> list[Disagreement]:
    """Return the images on which two detectors differ, those first on which they differ most.

    Args:
        ground_truth: A COCO document.
        first: What the first detector found.
        second: What the second found.
        count: At most so many.
        confidence: Lowest score that counts.
    """
    image_ids = np.unique(np.array([image["id"] for image in ground_truth["images"]], np.int64))
    mistakes = [_mistakes(ground_truth, _above(found, confidence), image_ids) for found in (first, second)]
    fewer = mistakes[0].sum(axis=1) - mistakes[1].sum(axis=1)  # (I,)
    order = np.argsort(-np.abs(fewer), kind="stable")[:count]
    return [
        Disagreement(
            image_id=int(image_ids[place]),
            first_missed=int(mistakes[0][place, 0]),
            first_false=int(mistakes[0][place, 1]),
            second_missed=int(mistakes[1][place, 0]),
            second_false=int(mistakes[1][place, 1]),
        )
        for place in order
        if fewer[place]
    ]


def _above(detections: Detections, confidence: float) -> Detections:
    rows = detections.scores >= confidence
    return Detections(
        image_ids=detections.image_ids[rows],
        category_ids=detections.category_ids[rows],
        boxes=detections.boxes[rows],
        scores=detections.scores[rows],
    )


def _mistakes(ground_truth: Mapping[str, Any], detections: Detections, image_ids: Integers) -> Integers:
    """Objects missed and false detections of each image, (I, 2)."""
    category_ids = np.array(sorted(category["id"] for category in ground_truth["categories"]), np.int64)
    truth = ground_truth_boxes(ground_truth["annotations"], image_ids, category_ids)
    found, _ = detection_boxes(detections, image_ids, category_ids)
    matched, ignored = (flags[:, IOU_50, ALL] for flags in match(truth, found))
    num_images = len(image_ids)

    def per_image(groups: Integers) -> Integers:
        return np.bincount(groups % num_images, minlength=num_images)

    missed = per_image(truth.groups[~truth.crowds]) - per_image(found.groups[matched & ~ignored])
    return np.stack((missed, per_image(found.groups[~matched & ~ignored])), axis=1)
