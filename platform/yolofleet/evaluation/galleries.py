"""Images that show what a detector does well and badly: true boxes, false ones and objects not found, each marked.

The weakest classes come first, each with images in which nothing is drawn but what concerns it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.data.draw import score_text
from yolofleet.evaluation.average_precision import ANY_CLASS, BoxTables
from yolofleet.evaluation.error_types import ERROR_KINDS, TRUE, Outcomes
from yolofleet.evaluation.precision_recall import Integers

MOST_FALSE_DRAWN = 10
"""False boxes of an image; those of a badly trained model would hide it."""
MOST_CLASSES = 4
"""Classes with images of their own."""
IMAGES_OF_CLASS, IMAGES_OF_ALL = 3, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryImage:
    """An image of a gallery.

    Attributes:
        image_id: Of the image.
        reason: Why it is there.
        class_index: The class whose boxes alone are drawn; None: all.
        drawing: Name of the drawing.
    """

    image_id: int
    reason: str
    class_index: int | None
    drawing: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Images of one kind.

    Attributes:
        name: Of the kind, as a heading.
        images: The most telling one first; none twice.
    """

    name: str
    images: tuple[GalleryImage, ...]


class ImageOutcomes:
    """The true and false boxes of each image from a threshold on, and the objects that none of them finds.

    Args:
        tables: The boxes.
        outcomes: What became of them.
        threshold: Lowest score that counts.
    """

    def __init__(self, tables: BoxTables, outcomes: Outcomes, threshold: float) -> None:
        self._tables, self._outcomes = tables, outcomes
        above = tables.scores >= threshold
        self.is_true, self.is_false = above & (outcomes.kinds == TRUE), above & outcomes.is_false
        self.is_not_found = outcomes.counted & ~outcomes.found(above)
        self._names = [tables.names[category_id] for category_id in tables.category_ids.tolist()]

    def galleries(self, weakest: Mapping[str, str]) -> tuple[Gallery, ...]:
        """Return the galleries that have an image: of the weakest classes, then of all.

        Args:
            weakest: Headings by names of classes, the weakest first; a class without a mistake has no gallery.
        """
        own = (self._of_class(self._names.index(name), heading) for name, heading in weakest.items())
        found = [gallery for gallery in own if gallery.images][:MOST_CLASSES] if len(weakest) > 1 else []
        return (*found, *(gallery for gallery in self._of_all() if gallery.images))

    def _of_class(self, index: int, heading: str) -> Gallery:
        """Return the images with most mistakes in one class."""
        counts = self._counts_by_image(index)
        order = _by_mistakes(*counts)[:IMAGES_OF_CLASS]
        chosen = [(image, _said(counts, image)) for image in order.tolist() if counts[1][image] + counts[2][image]]
        return self._gallery(heading, chosen, index)

    def _of_all(self) -> Iterator[Gallery]:
        counts = self._counts_by_image(None)
        mistakes = counts[1] + counts[2]
        worst = _by_mistakes(*counts)[:IMAGES_OF_ALL]
        best = np.lexsort((-counts[0], mistakes, -_f1(*counts)))[:IMAGES_OF_ALL]
        yield self._gallery("Most mistakes", [(i, _said(counts, i)) for i in worst.tolist() if mistakes[i]])
        outcomes, truth = self._outcomes, self._tables.truth
        false = np.flatnonzero(self.is_false)
        false = false[np.argsort(-self._tables.scores[false], kind="stable")]
        yield self._first("Most confident and wrong", outcomes.images, outcomes.classes, false, self._false_reason)
        lost = np.flatnonzero(self.is_not_found)
        lost = lost[np.argsort(-truth.areas[lost], kind="stable")]
        images, classes = outcomes.object_images, outcomes.object_classes
        yield self._first("Largest objects not found", images, classes, lost, self._object_reason)
        yield self._gallery("Best", [(i, _said(counts, i)) for i in best.tolist() if counts[0][i]])

    def _gallery(self, name: str, chosen: Sequence[tuple[int, str]], class_index: int | None = None) -> Gallery:
        return Gallery(name=name, images=tuple(self._image(index, reason, class_index) for index, reason in chosen))

    def _image(self, index: int, reason: str, class_index: int | None) -> GalleryImage:
        image_id = int(self._tables.image_ids[index])
        drawing = str(image_id) if class_index is None else f"{image_id}-class-{class_index}"
        return GalleryImage(image_id=image_id, reason=reason, class_index=class_index, drawing=drawing)

    def _first(
        self, name: str, images: Integers, classes: Integers, rows: Integers, reason: Callable[[int], str]
    ) -> Gallery:
        """Return the first images among those of some rows, none twice; those of one class stand together."""
        _, first = np.unique(images[rows], return_index=True)
        chosen = rows[np.sort(first)[:IMAGES_OF_ALL]].tolist()
        order = list(dict.fromkeys(classes[chosen].tolist()))
        chosen.sort(key=lambda row: order.index(classes[row]))
        shown = (self._image(int(images[row]), reason(row), int(classes[row])) for row in chosen)
        return Gallery(name=name, images=tuple(shown))

    def _counts_by_image(self, class_index: int | None) -> tuple[Integers, Integers, Integers]:
        """Return (I,) true boxes, false boxes and objects not found of each image, of one class or of all."""
        outcomes = self._outcomes
        parts = (
            (self.is_true, outcomes.classes, outcomes.images),
            (self.is_false, outcomes.classes, outcomes.images),
            (self.is_not_found, outcomes.object_classes, outcomes.object_images),
        )
        true, false, not_found = (
            np.bincount(
                images[chosen if class_index is None else chosen & (classes == class_index)],
                minlength=len(self._tables.image_ids),
            )
            for chosen, classes, images in parts
        )
        return true, false, not_found

    def _false_reason(self, row: int) -> str:
        name, kind = self._names[self._outcomes.classes[row]], ERROR_KINDS[self._outcomes.kinds[row]]
        return f"{name} {score_text(self._tables.scores[row])}: {FALSE_REASONS[kind]}"

    def _object_reason(self, row: int) -> str:
        width, height = self._tables.truth.boxes[row, 2:]
        return f"{self._names[self._outcomes.object_classes[row]]} of {width:.0f}x{height:.0f} px"

    def boxes_of(self, image_id: int, class_index: int | None = None) -> list[dict[str, Any]]:
        """Return boxes of one image as records to draw: category_id, bbox, score of a detection, outcome.

        Args:
            image_id: Of the image.
            class_index: Of one class alone, with the boxes of other classes that lie on its objects; None: of all. The
                name of the one class is not written, nor is any where all classes count as one.
        """
        if class_index is None and ANY_CLASS in self._tables.category_ids:
            class_index = 0
        index = int(np.searchsorted(self._tables.image_ids, image_id))
        outcomes, detected = self._outcomes, self._tables.detected
        is_own, is_own_object = outcomes.images == index, outcomes.object_images == index
        if class_index is not None:
            is_own_object &= outcomes.object_classes == class_index
            is_on_own = (outcomes.objects >= 0) & is_own_object[outcomes.objects] if len(is_own_object) else False
            is_own &= (outcomes.classes == class_index) | is_on_own
        lost = np.flatnonzero(self.is_not_found & is_own_object)
        records = list(self._records("not found", self._tables.truth.boxes, outcomes.object_classes, lost))
        for outcome, chosen in (("false", self.is_false), ("true", self.is_true)):
            rows = np.flatnonzero(chosen & is_own)
            if outcome == "false":
                rows = rows[np.argsort(-self._tables.scores[rows], kind="stable")][:MOST_FALSE_DRAWN]
            found = self._records(outcome, detected.boxes, outcomes.classes, rows)
            scores = self._tables.scores[rows].tolist()
            records += [{**record, "score": score} for record, score in zip(found, scores, strict=True)]
        if class_index is not None:
            category_id = int(self._tables.category_ids[class_index])
            for record in records:
                if record["category_id"] == category_id:
                    record["label"] = score_text(record["score"]) if "score" in record else ""
        return records

    def _records(self, outcome: str, boxes: Any, classes: Integers, rows: Integers) -> Iterator[dict[str, Any]]:
        for row in rows.tolist():
            category_id = int(self._tables.category_ids[classes[row]])
            yield {"category_id": category_id, "bbox": boxes[row].tolist(), "outcome": outcome}


def _f1(true: Integers, false: Integers, not_found: Integers) -> Any:
    return 2 * true / np.maximum(2 * true + false + not_found, 1)


def _by_mistakes(true: Integers, false: Integers, not_found: Integers) -> Integers:
    """Return images, those with most mistakes first; of equal ones those with the lower F1."""
    return np.lexsort((_f1(true, false, not_found), -(false + not_found)))


def _said(counts: tuple[Integers, Integers, Integers], image: int) -> str:
    return ", ".join(f"{found[image]} {name}" for name, found in zip(OUTCOME_NAMES, counts, strict=True))


OUTCOME_NAMES = ("true", "false", "not found")
FALSE_REASONS = {
    "classification": "an object of another class",
    "localisation": "too far off its object",
    "both": "too far off an object of another class",
    "duplicate": "the object is found already",
    "background": "no object there",
}
