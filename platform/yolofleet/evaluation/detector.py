"""A detector: a network with its classes and thresholds, ready to look at images.

The device that a user names.

How long a network takes for one image.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.letterbox import Letterbox, letterbox
from yolofleet.evaluation.detector_package import DetectorCard, check_fit, read_package
from yolofleet.evaluation.images import ImageInput, ImageReadError, read_image
from yolofleet.evaluation.nms import non_maximum_suppression
from yolofleet.models.fused import fastest_form
from yolofleet.models.network import Network


def chosen_device(name: str, setting: str) -> torch.device:
    """Return a device that works here; ``auto`` takes a GPU where there is one.

    Args:
        name: auto, cpu, cuda or cuda:N.
        setting: Where the user named it, for the error.

    Raises:
        UserError: No such device, or none that works here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch tells what is missing in all three
        reason = str(error).splitlines()[0]
        raise UserError(f"{setting} {name}: {reason}; use auto, cpu, cuda or cuda:N") from None
    return device


@torch.inference_mode()
def median_milliseconds(
    model: nn.Module, image_size: int, device: torch.device, *, warm_up: int, repetitions: int
) -> float:
    """Return the median time of a network for one square random image.

    Args:
        model: In evaluation mode.
        image_size: Side of the image in pixels.
        device: Where the model lies.
        warm_up: Passes that are not counted.
        repetitions: Passes that are.
    """
    image = torch.rand(1, 3, image_size, image_size, device=device)
    seconds = []
    for repetition in range(warm_up + repetitions):
        begin = time.perf_counter()
        model(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repetition >= warm_up:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds) * 1000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detector:
    """A detector ready to look at images.

    Attributes:
        model: the network in evaluation mode, on `device`.
        network: what predicts: the model itself, or a faster form that computes the same.
        card: what the package says about it.
        device: where it computes.
    """

    model: Network
    network: nn.Module
    card: DetectorCard
    device: torch.device

    @staticmethod
    def load(folder: str | Path, device: str | torch.device = "cpu") -> Detector:
        """Reads a detector package, to compute in torch.

        Raises:
            DetectorError: no package, a damaged one, one of a newer format, or weights that do not fit its model.
        """
        card, model = read_package(Path(folder))
        model.to(device).eval().requires_grad_(False)
        network = fastest_form(model, card.image_size)
        return Detector(model=model, network=network, card=card, device=torch.device(device))

    @property
    def classes(self) -> list[tuple[int, str]]:
        """(category id, name) of each class index."""
        return [(entry.id, entry.name) for entry in self.card.classes]

    def predict(
        self,
        images: Sequence[ImageInput],
        *,
        confidence: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> list[list[dict[str, Any]]]:
        """Finds objects in images.

        Args:
            images: each a path, the bytes of a file, base64 text (plain or a data URL), or an array (H, W, 3) uint8
                RGB. Whatever a viewer shows upright is looked at upright.
            confidence: lowest score returned; as the package says if None. So with the next three.
            iou: overlap above which the worse of two boxes of a class is suppressed.
            max_detections: kept per image.
            image_size: long side of the network's input in pixels, a multiple of the model's largest stride.
            batch_size: images that are decoded and pass the network together.
            max_pixels: larger images are refused before they are decoded.

        Returns:
            Per image, best first: category_id, category_name, bbox x, y, width, height in pixels, score.

        Raises:
            UserError: one of the images cannot be read; the message says which and why.
        """
        found = self.predict_each(
            images,
            confidence=confidence,
            iou=iou,
            max_detections=max_detections,
            image_size=image_size,
            batch_size=batch_size,
            max_pixels=max_pixels,
        )
        records = []
        for answer in found:
            if isinstance(answer, ImageReadError):
                raise answer
            records.append(answer)
        return records

    def predict_each(
        self,
        images: Sequence[ImageInput],
        *,
        confidence: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> list[list[dict[str, Any]] | ImageReadError]:
        """Finds objects in images as `predict` does; an image that cannot be read has its error in its place."""
        size = self.card.image_size if image_size is None else image_size
        check_fit(self.model, len(self.card.classes), size)
        found: list[list[dict[str, Any]] | ImageReadError] = []
        for start in range(0, len(images), max(1, batch_size)):
            answers: list[list[dict[str, Any]] | ImageReadError] = []
            boxed: list[tuple[NDArray[np.uint8], Letterbox]] = []
            for source in images[start : start + batch_size]:
                try:
                    boxed.append(self._boxed(source, size, max_pixels))  # only one is held in its full size
                    answers.append([])
                except ImageReadError as error:
                    answers.append(error)
            records = self._find(
                boxed,
                confidence=self.card.confidence if confidence is None else confidence,
                iou=self.card.iou if iou is None else iou,
                max_detections=self.card.max_detections if max_detections is None else max_detections,
            )
            left = iter(records)
            found += [answer if isinstance(answer, ImageReadError) else next(left) for answer in answers]
        return found

    def _boxed(self, source: ImageInput, image_size: int, max_pixels: int) -> tuple[NDArray[np.uint8], Letterbox]:
        image = read_image(source, max_pixels=max_pixels)
        return letterbox(image, (image_size, image_size), stride=self.model.max_stride, auto=True, scale_up=True)

    @torch.inference_mode()
    def _find(
        self,
        boxed: Sequence[tuple[NDArray[np.uint8], Letterbox]],
        *,
        confidence: float,
        iou: float,
        max_detections: int,
    ) -> list[list[dict[str, Any]]]:
        """Letterboxed images -> their records; those of one size pass the network together."""
        records: list[list[dict[str, Any]]] = [[] for _ in boxed]
        for places in _of_equal_shape([source for source, _ in boxed]):
            batch = torch.from_numpy(np.stack([boxed[place][0] for place in places])).to(self.device)
            decoded = self.network(batch.permute(0, 3, 1, 2).float() / 255)  # (B, boxes, 5 + C)
            detections = non_maximum_suppression(
                decoded, confidence=confidence, iou=iou, max_detections=max_detections, multi_label=False
            )
            for place, rows in zip(places, detections, strict=True):
                rows[:, :4] = boxed[place][1].undo(rows[:, :4])
                records[place] = list(self._records(rows.cpu()))
        return records

    def _records(self, rows: Tensor) -> Iterator[dict[str, Any]]:
        """Detections (k, 6) x1, y1, x2, y2, score, class -> COCO-style records."""
        for x1, y1, x2, y2, score, index in rows.double().tolist():
            entry = self.card.classes[int(index)]
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            yield {"category_id": entry.id, "category_name": entry.name, "bbox": box, "score": round(score, 5)}


def _of_equal_shape(images: Sequence[NDArray[np.uint8]]) -> list[list[int]]:
    """The places of equally large images, together."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image.shape, []).append(place)
    return list(places.values())
