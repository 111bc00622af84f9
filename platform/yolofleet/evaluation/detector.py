"""The detector package: a folder that holds all it takes to find objects in pictures, and no code.

`detector.json` says what the model is (its block table, its classes with the dataset's ids, the input size and the
thresholds to use), `model.safetensors` holds the weights; the JSON carries their digest and is written last, so that a
half-written or damaged package is never taken for a good one. Nothing in a package is executed when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.letterbox import Letterbox, letterbox
from yolofleet.errors import UserError
from yolofleet.evaluation.nms import non_maximum_suppression
from yolofleet.evaluation.pictures import Picture, PictureError, read_picture
from yolofleet.models import build_model
from yolofleet.models.detector import Detector as Network
from yolofleet.models.fused import fastest_form
from yolofleet.specs.base import Spec
from yolofleet.specs.model import ModelTable

FORMAT = 1
CARD_NAME = "detector.json"
WEIGHTS_NAME = "model.safetensors"
MOST_BYTES_OF_CARD = 16_000_000

Share = Annotated[float, Field(ge=0, le=1)]


class DetectorError(UserError):
    """A folder is no detector package, or a damaged one."""


class DetectorClass(Spec):
    """One class a detector knows."""

    id: int
    """The category id of the dataset it was trained on."""
    name: str


class DetectorCard(Spec):
    """What `detector.json` holds."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    model: ModelTable
    deployed: bool
    """Whether the weights are those of the re-parameterised form."""
    classes: Annotated[tuple[DetectorClass, ...], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=32, le=16384)]
    """Long side of the network's input in pixels."""
    confidence: Share
    """Score from which a detection is shown."""
    iou: Share
    """Overlap above which the worse of two boxes of a class is suppressed."""
    max_detections: Annotated[int, Field(ge=1, le=100_000)]
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def save_detector(
    folder: Path,
    model: Network,
    classes: Sequence[tuple[int, str]],
    image_size: int,
    *,
    confidence: float = 0.25,
    iou: float = 0.45,
    max_detections: int = 300,
) -> Path:
    """Writes a detector package.

    Args:
        folder: made if it is missing; a package that lies there is replaced.
        model: a detector of this package's models, usually in its deployed form.
        classes: (category id, name) of each class index.
        image_size: long side of the network's input in pixels, a multiple of the model's largest stride.
        confidence: the score from which detections are shown unless asked otherwise.
        iou: the overlap above which the worse of two boxes of a class is suppressed.
        max_detections: kept per picture.

    Returns:
        The folder.

    Raises:
        UserError: the folder cannot be written, or classes or image size do not fit the model.
    """
    _check_fit(model, len(classes), image_size)
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    card = DetectorCard(
        model=model.table,
        deployed=model.deployed,
        classes=tuple(DetectorClass(id=number, name=name) for number, name in classes),
        image_size=image_size,
        confidence=confidence,
        iou=iou,
        max_detections=max_detections,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD_NAME).unlink(missing_ok=True)
        (folder / WEIGHTS_NAME).write_bytes(weights)
        (folder / CARD_NAME).write_text(json.dumps(card.document(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DetectorError(f"cannot write the detector package {folder}: {error.strerror or error}") from error
    return folder


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detector:
    """A detector ready to look at pictures.

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
        folder = Path(folder)
        card = _read_card(folder)
        path = folder / WEIGHTS_NAME
        data = _read(path)
        digest = hashlib.sha256(data).hexdigest()
        if digest != card.weights_sha256:
            raise DetectorError(
                f"{path} is damaged: its SHA-256 is {digest[:12]}..., {CARD_NAME} says {card.weights_sha256[:12]}...; "
                "copy or export the package again"
            )
        try:
            state = load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise DetectorError(f"{path} is not a safetensors file: {error}") from error
        model = build_model(card.model, len(card.classes), deployed=card.deployed)
        _check_weights(model, state, path)
        model.load_state_dict(state)
        _check_fit(model, len(card.classes), card.image_size)
        model.to(device).eval().requires_grad_(False)
        network = fastest_form(model, card.image_size)
        return Detector(model=model, network=network, card=card, device=torch.device(device))

    @property
    def classes(self) -> list[tuple[int, str]]:
        """(category id, name) of each class index."""
        return [(entry.id, entry.name) for entry in self.card.classes]

    def predict(
        self,
        pictures: Sequence[Picture],
        *,
        confidence: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> list[list[dict[str, Any]]]:
        """Finds objects in pictures.

        Args:
            pictures: each a path, the bytes of a file, base64 text (plain or a data URL), or an array (H, W, 3) uint8
                RGB. Whatever a viewer shows upright is looked at upright.
            confidence: lowest score returned; as the package says if None. So with the next three.
            iou: overlap above which the worse of two boxes of a class is suppressed.
            max_detections: kept per picture.
            image_size: long side of the network's input in pixels, a multiple of the model's largest stride.
            batch_size: pictures that are decoded and pass the network together.
            max_pixels: larger pictures are refused before they are decoded.

        Returns:
            Per picture, best first: category_id, category_name, bbox x, y, width, height in pixels, score.

        Raises:
            UserError: one of the pictures cannot be read; the message says which and why.
        """
        found = self.predict_each(
            pictures,
            confidence=confidence,
            iou=iou,
            max_detections=max_detections,
            image_size=image_size,
            batch_size=batch_size,
            max_pixels=max_pixels,
        )
        records = []
        for answer in found:
            if isinstance(answer, PictureError):
                raise answer
            records.append(answer)
        return records

    def predict_each(
        self,
        pictures: Sequence[Picture],
        *,
        confidence: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> list[list[dict[str, Any]] | PictureError]:
        """Finds objects in pictures as `predict` does; a picture that cannot be read has its error in its place."""
        size = self.card.image_size if image_size is None else image_size
        _check_fit(self.model, len(self.card.classes), size)
        found: list[list[dict[str, Any]] | PictureError] = []
        for start in range(0, len(pictures), max(1, batch_size)):
            answers: list[list[dict[str, Any]] | PictureError] = []
            boxed: list[tuple[NDArray[np.uint8], Letterbox]] = []
            for picture in pictures[start : start + batch_size]:
                try:
                    boxed.append(self._boxed(picture, size, max_pixels))  # only one is held in its full size
                    answers.append([])
                except PictureError as error:
                    answers.append(error)
            records = self._find(
                boxed,
                confidence=self.card.confidence if confidence is None else confidence,
                iou=self.card.iou if iou is None else iou,
                max_detections=self.card.max_detections if max_detections is None else max_detections,
            )
            left = iter(records)
            found += [answer if isinstance(answer, PictureError) else next(left) for answer in answers]
        return found

    def _boxed(self, picture: Picture, image_size: int, max_pixels: int) -> tuple[NDArray[np.uint8], Letterbox]:
        image = read_picture(picture, max_pixels=max_pixels)
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
        """Letterboxed pictures -> their records; those of one size pass the network together."""
        records: list[list[dict[str, Any]]] = [[] for _ in boxed]
        for places in _of_equal_shape([picture for picture, _ in boxed]):
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
    """The places of equally large pictures, together."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image.shape, []).append(place)
    return list(places.values())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DetectorError(
            f"cannot read {path}: {error.strerror or error}; a detector package is a folder with {CARD_NAME} and "
            f"{WEIGHTS_NAME}"
        ) from error


def _read_card(folder: Path) -> DetectorCard:
    path = folder / CARD_NAME
    data = _read(path)
    if len(data) > MOST_BYTES_OF_CARD:
        raise DetectorError(f"{path} is no {CARD_NAME}: it has {len(data):,} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DetectorError(f"{path} is not JSON: {error}") from error
    written = document.get("format") if isinstance(document, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise DetectorError(
            f"{path} has format {written}, this yolofleet reads formats up to {FORMAT}: use the version that wrote it, "
            "or a newer one"
        )
    return DetectorCard.parse(document, source=str(path))


def _check_fit(model: Network, num_classes: int, image_size: int) -> None:
    if num_classes != model.num_classes:
        raise DetectorError(f"the model predicts {model.num_classes} classes, but {num_classes} are named")
    stride = model.max_stride
    if image_size < stride or image_size % stride:
        raise DetectorError(f"image size {image_size} is not a multiple of {stride}, the model's largest stride")


def _check_weights(model: Network, state: dict[str, Tensor], path: Path) -> None:
    """Says which weights do not fit, if any."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    misshapen = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    invalid = [f"{name} holds values that are not finite" for name in state if not state[name].isfinite().all()]
    problems = [f"{name} is missing" for name in missing] + [f"{name} is not part of it" for name in unknown]
    problems += misshapen + invalid
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DetectorError(f"{path} does not fit the model of {CARD_NAME}: {'; '.join(problems[:3])}{more}")
