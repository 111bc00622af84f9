"""The images on which two detectors differ most: by how many objects each misses there and how often each is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.matching import Integers, match
from yolofleet.evaluation.precision_recall import ALL, IOU_50, detection_boxes, ground_truth_boxes


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
