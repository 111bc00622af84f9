"""Images of an evaluation: the ground truth beside the detections, or what was found, and what not, in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from yolofleet.data.dataset import ShardDataset
from yolofleet.data.draw import JPEG_QUALITY, MARGIN, draw_detections, encode
from yolofleet.data.records import SampleError
from yolofleet.evaluation.detections import Detections

if TYPE_CHECKING:
    from yolofleet.evaluation.galleries import Gallery, ImageOutcomes

GAP = 6
COARSEST_QUALITY = 50
"""Of a JPEG whose boxes and labels are still clear."""
SMALLER, SMALLEST_SIDE = 0.8, 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleImage:
    """One image several times: left with its ground truth, then with the detections.

    Attributes:
        name: its name in the dataset's source.
        jpeg: the encoded image.
        width: of it, in pixels.
        height: of it, in pixels.
    """

    name: str
    jpeg: bytes
    width: int
    height: int

    def within(self, most_bytes: int) -> SampleImage:
        """Return the image in so many bytes at most: encoded coarser, and where that is not enough, smaller."""
        image, quality = self, JPEG_QUALITY
        if len(self.jpeg) <= most_bytes:
            return image
        with Image.open(BytesIO(self.jpeg)) as opened:
            drawing: Image.Image = opened.convert("RGB")
        while len(image.jpeg) > most_bytes and min(drawing.size) > SMALLEST_SIDE:
            if quality > COARSEST_QUALITY:
                quality -= 14
            else:
                drawing = drawing.resize((round(drawing.width * SMALLER), round(drawing.height * SMALLER)))
            encoded = BytesIO()
            drawing.save(encoded, "JPEG", quality=quality)
            image = SampleImage(name=self.name, jpeg=encoded.getvalue(), width=drawing.width, height=drawing.height)
        return image


def draw_samples(
    dataset: ShardDataset, detections: Detections, *, count: int = 8, confidence: float = 0.25, side: int = 400
) -> list[SampleImage]:
    """Draws some images of a dataset, evenly spread over it.

    Args:
        dataset: the images and their objects.
        detections: of the detector in these images.
        count: how many images.
        confidence: lowest score drawn.
        side: longest side of each half in pixels.

    Returns:
        At most `count` images; one that cannot be read is left out.
    """
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    found = (draw_sample(dataset, number, [detections], confidence, side) for number in numbers.tolist())
    return [image for image in found if image is not None]


def draw_outcomes(
    dataset: ShardDataset, galleries: Sequence[Gallery], images: ImageOutcomes, *, side: int = 400
) -> dict[str, SampleImage]:
    """Draws the images of galleries, each drawing once, with true and false boxes and objects not found.

    Args:
        dataset: the images.
        galleries: which of them.
        images: the boxes.
        side: longest side in pixels.

    Returns:
        The drawings by their names; an image that cannot be read is left out.
    """
    wanted: dict[int, dict[str, int | None]] = {}
    for image in (image for gallery in galleries for image in gallery.images):
        wanted.setdefault(image.image_id, {})[image.drawing] = image.class_index
    drawn: dict[str, SampleImage] = {}
    for number in range(len(dataset)):
        if not wanted:
            break
        try:
            if dataset.read_record(number)[1].image_id not in wanted:
                continue
            _, record, pixels, _ = dataset.read_decoded(number)
        except SampleError:  # evaluation has counted and named it already
            continue
        for name, class_index in wanted.pop(record.image_id).items():
            boxes = images.boxes_of(record.image_id, class_index)
            drawing = draw_detections(pixels, boxes, names=dict(dataset.classes), side=side)
            drawn[name] = SampleImage(
                name=record.file_name, jpeg=encode(drawing), width=drawing.width, height=drawing.height
            )
    return drawn


def draw_sample(
    dataset: ShardDataset, number: int, found: Sequence[Detections], confidence: float = 0.25, side: int = 400
) -> SampleImage | None:
    """Draws one image several times: with its ground truth, and with what each detector found.

    Args:
        dataset: the images and their objects.
        number: of the sample.
        found: of each detector.
        confidence: lowest score drawn.
        side: longest side of each copy in pixels.

    Returns:
        The image, or None if it cannot be read.
    """
    try:
        _, record, pixels, _ = dataset.read_decoded(number)
    except SampleError:  # evaluation has counted and named it already
        return None
    objects = [
        {"category_id": dataset.classes[int(index)][0], "bbox": box, "iscrowd": bool(crowd)}
        for index, box, crowd in zip(record.classes, record.boxes.tolist(), record.iscrowd, strict=True)
    ]
    drawn = [objects, *(_records(detections, record.image_id, confidence) for detections in found)]
    both = _beside([draw_detections(pixels, found, names=dict(dataset.classes), side=side) for found in drawn])
    return SampleImage(name=record.file_name, jpeg=encode(both), width=both.width, height=both.height)


def _records(detections: Detections, image_id: int, confidence: float) -> list[dict[str, Any]]:
    rows = np.flatnonzero((detections.image_ids == image_id) & (detections.scores >= confidence))
    return [
        {
            "category_id": int(detections.category_ids[row]),
            "bbox": detections.boxes[row].tolist(),
            "score": float(detections.scores[row]),
        }
        for row in rows
    ]


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size in a row."""
    width, height = images[0].size
    row = Image.new("RGB", (len(images) * (width + GAP) - GAP, height), MARGIN)
    for position, image in enumerate(images):
        row.paste(image, (position * (width + GAP), 0))
    return row
