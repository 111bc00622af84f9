"""A detector: a network with its classes and thresholds, ready to predict; the device it runs on, and its speed.

Images of one shape pass the network together, and one that cannot be read never costs the others of its batch.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural
from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.letterbox import Letterbox, letterbox
from yolofleet.evaluation.detector_package import DetectorCard, check_fit, read_package
from yolofleet.evaluation.images import ImageInput, ImageReadError, read_image
from yolofleet.evaluation.nms import non_maximum_suppression
from yolofleet.models.fused import fastest_form
from yolofleet.models.network import Network

FEWEST_PASSES = 3
"""Of a measurement of time, however long they take."""


def select_device(name: str, setting: str) -> torch.device:
    """Return a device that works here; ``auto`` selects a GPU where there is one.

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
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch says what is missing in all three
        reason = str(error).splitlines()[0]
        raise UserError(f"{setting} {name}: {reason}; use auto, cpu, cuda or cuda:N") from None
    return device


@torch.inference_mode()
def pass_milliseconds(
    network: nn.Module, images: Tensor, *, warm_up: int, repetitions: int, most_seconds: float = math.inf
) -> list[float]:
    """Return the time of each pass of a network over the same images, in milliseconds.

    On a GPU the time is that between two events on its stream, and each pass is waited for before the next begins.

    Args:
        network: In evaluation mode, on the device of the images.
        images: (B, 3, H, W) in 0..1.
        warm_up: Passes that are not counted.
        repetitions: Passes that are.
        most_seconds: After these no more passes begin, once `FEWEST_PASSES` are counted.
    """
    on_gpu, milliseconds = images.device.type == "cuda", []
    start = time.perf_counter()
    for repetition in range(warm_up + repetitions):
        if on_gpu:
            with torch.cuda.device(images.device):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                begin.record()
                network(images)
                end.record()
                end.synchronize()
            taken = begin.elapsed_time(end)
        else:
            before = time.perf_counter()
            network(images)
            taken = (time.perf_counter() - before) * 1000
        if repetition >= warm_up:
            milliseconds.append(taken)
        if len(milliseconds) >= FEWEST_PASSES and time.perf_counter() - start > most_seconds:
            break
    return milliseconds


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
    return statistics.median(pass_milliseconds(model, image, warm_up=warm_up, repetitions=repetitions))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detector:
    """A detector ready to predict.

    Attributes:
        model: The network in evaluation mode, on `device`.
        network: The form that predicts: the model itself, or a faster form that computes the same.
        card: The card of its package.
        device: Its device.
    """

    model: Network
    network: nn.Module
    card: DetectorCard
    device: torch.device

    def __repr__(self) -> str:
        names = and_more([name for _, name in self.classes], 5)
        card, millions = self.card, sum(weight.numel() for weight in self.model.parameters()) / 1e6
        return (
            f"Detector of {plural(len(self.classes), 'class')} ({names}), {millions:.1f} M parameters, on "
            f"{self.device}\n  {card.image_size} px, confidence {card.confidence:g}, IoU {card.iou:g}, at most "
            f"{plural(card.max_detections, 'object')} an image"
        )

    @staticmethod
    def load(folder: str | Path, device: str | torch.device = "cpu") -> Detector:
        """Read a detector package, to compute in torch.

        Raises:
            DetectorError: No package, a damaged one, one of a newer format, or weights that do not fit its model.
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
        """Detect objects in images.

        Args:
            images: Each a path, the bytes of a file, base64 text (plain or a data URL), or an array (H, W, 3) uint8
                RGB. EXIF orientation is applied.
            confidence: Lowest score returned; the package's value if None, as for the next three.
            iou: Overlap above which the worse of two boxes of a class is suppressed.
            max_detections: Kept per image.
            image_size: Long side of the network's input in pixels, a multiple of the model's largest stride.
            batch_size: Images that are decoded and pass the network together.
            max_pixels: Larger images are refused before they are decoded.

        Returns:
            Per image, best first: category_id, category_name, bbox x, y, width, height in pixels, score.

        Raises:
            UserError: One of the images cannot be read; the message says which and why.
        """
        results = self.predict_each(
            images,
            confidence=confidence,
            iou=iou,
            max_detections=max_detections,
            image_size=image_size,
            batch_size=batch_size,
            max_pixels=max_pixels,
        )
        records = []
        for result in results:
            if isinstance(result, ImageReadError):
                raise result
            records.append(result)
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
        """Detect objects in images as `predict` does; the error of an image that cannot be read is its result."""
        size = self.card.image_size if image_size is None else image_size
        check_settings(
            confidence=confidence,
            iou=iou,
            max_detections=max_detections,
            image_size=size,
            batch_size=batch_size,
        )
        if isinstance(images, str | bytes) or not hasattr(images, "__len__") or getattr(images, "ndim", 4) < 4:
            raise UserError(f"images: a list of images is needed, not one {type(images).__name__}; [IMAGE] is a list")
        check_fit(self.model, len(self.card.classes), size)
        results: list[list[dict[str, Any]] | ImageReadError] = []
        for start in range(0, len(images), max(1, batch_size)):
            errors: list[ImageReadError | None] = []
            boxed: list[tuple[NDArray[np.uint8], Letterbox]] = []
            for source in images[start : start + batch_size]:
                try:
                    boxed.append(self._letterbox(source, size, max_pixels))  # only one is held in its full size
                    errors.append(None)
                except ImageReadError as error:
                    errors.append(error)
            records = self._detect(
                boxed,
                confidence=self.card.confidence if confidence is None else confidence,
                iou=self.card.iou if iou is None else iou,
                max_detections=self.card.max_detections if max_detections is None else max_detections,
            )
            remaining = iter(records)
            results += [next(remaining) if error is None else error for error in errors]
        return results

    def _letterbox(self, source: ImageInput, image_size: int, max_pixels: int) -> tuple[NDArray[np.uint8], Letterbox]:
        image = read_image(source, max_pixels=max_pixels)
        return letterbox(image, (image_size, image_size), stride=self.model.max_stride, auto=True, scale_up=True)

    @torch.inference_mode()
    def _detect(
        self,
        boxed: Sequence[tuple[NDArray[np.uint8], Letterbox]],
        *,
        confidence: float,
        iou: float,
        max_detections: int,
    ) -> list[list[dict[str, Any]]]:
        """Return the records of letterboxed images; images of one shape pass the network together."""
        records: list[list[dict[str, Any]]] = [[] for _ in boxed]
        for positions in _group_by_shape([source for source, _ in boxed]):
            batch = torch.from_numpy(np.stack([boxed[position][0] for position in positions])).to(self.device)
            decoded = self.network(batch.permute(0, 3, 1, 2).float() / 255)  # (B, boxes, 5 + C)
            detections = non_maximum_suppression(
                decoded, confidence=confidence, iou=iou, max_detections=max_detections, multi_label=False
            )
            for position, rows in zip(positions, detections, strict=True):
                rows[:, :4] = boxed[position][1].undo(rows[:, :4])
                records[position] = list(self._records(rows.cpu()))
        return records

    def _records(self, rows: Tensor) -> Iterator[dict[str, Any]]:
        """Yield COCO-style records of detections (k, 6): x1, y1, x2, y2, score, class."""
        for x1, y1, x2, y2, score, index in rows.double().tolist():
            entry = self.card.classes[int(index)]
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            yield {"category_id": entry.id, "category_name": entry.name, "bbox": box, "score": round(score, 5)}


def check_settings(**settings: object) -> None:
    """Refuse a threshold (``confidence``, ``iou``) outside 0 to 1, and a count or size below one; None is allowed.

    Raises:
        UserError: The message says which, and what is allowed.
    """
    for name, value in settings.items():
        if value is None:
            continue
        if name in ("confidence", "iou"):
            if not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise UserError(f"{name}={value!r}: a number from 0 to 1 is needed")
        elif not isinstance(value, Integral) or value < 1:
            raise UserError(f"{name}={value!r}: a whole number of at least 1 is needed")


def _group_by_shape(images: Sequence[NDArray[np.uint8]]) -> list[list[int]]:
    """Return the positions of the images of each shape."""
    positions: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        positions.setdefault(image.shape, []).append(position)
    return list(positions.values())
