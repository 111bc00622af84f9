"""The detector package: a folder that holds everything needed to detect objects in images, and no code.

`detector.json` describes the model (its block table, its classes with the dataset's ids, the input size and the default
thresholds), `model.safetensors` holds the weights. The JSON holds their digest and is written last, so a half-written
or damaged package is never read as a good one. Nothing in a package is executed when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import save

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import DETECTOR_CARD_NAME
from yolofleet.core.local_files import open_regular, read_regular
from yolofleet.core.text import one_line, plural, short
from yolofleet.models import build_model
from yolofleet.models.deployment import has_half_weights
from yolofleet.models.network import Network, convolution_shapes
from yolofleet.models.tensor_file import FileHeader, TensorFileError, read_header, tensors_in
from yolofleet.models.weight_differences import compare_weights, count_names
from yolofleet.specs.base import Spec
from yolofleet.specs.model import ModelTable

if TYPE_CHECKING:  # the code that serves a detector has no storage
    from yolofleet.storage import Storage

FORMAT = 1
WEIGHTS_NAME = "model.safetensors"
MOST_CARD_BYTES = 4_000_000
MOST_WEIGHT_BYTES = 2**34
MOST_CLASSES = 10_000

Share = Annotated[float, Field(ge=0, le=1)]


class DetectorError(UserError):
    """A folder is not a detector package, or is a damaged one."""


class DetectorClass(Spec):
    """One class of a detector."""

    id: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    """The category id of the dataset it was trained on."""
    name: str


class DetectorCard(Spec):
    """The content of `detector.json`."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    model: ModelTable
    deployed: bool
    """Whether the weights are those of the deployed form."""
    classes: Annotated[tuple[DetectorClass, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    image_size: Annotated[int, Field(ge=32, le=16384)]
    """Long side of the network's input in pixels."""
    confidence: Share
    """Lowest score of a detection that is returned by default."""
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
    """Write a detector package, its weights in half precision where that holds them as they are.

    Args:
        folder: Created if it is missing; a package in it is replaced.
        model: A detector of this package's models, usually in its deployed form.
        classes: (category id, name) of each class index.
        image_size: Long side of the network's input in pixels, a multiple of the model's largest stride.
        confidence: Lowest score of the detections returned by default.
        iou: Overlap above which the worse of two boxes of a class is suppressed.
        max_detections: Kept per image.

    Returns:
        The folder.

    Raises:
        UserError: The folder cannot be written, or classes or image size do not fit the model.
    """
    check_fit(model, len(classes), image_size)
    halved = {name for name, _ in model.named_parameters()} if has_half_weights(model) else set()
    tensors = {name: tensor.half() if name in halved else tensor for name, tensor in model.state_dict().items()}
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
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
        (folder / DETECTOR_CARD_NAME).unlink(missing_ok=True)
        (folder / WEIGHTS_NAME).write_bytes(weights)
        (folder / DETECTOR_CARD_NAME).write_text(json.dumps(card.document(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DetectorError(f"cannot write the detector package {folder}: {error.strerror or error}") from error
    return folder


def read_package(folder: Path) -> tuple[DetectorCard, Network]:
    """Read a detector package: its card and its network.

    Names and shapes are compared with those of the model, without its memory, before the weights are read.

    Raises:
        DetectorError: No package, a damaged one, one of a newer format, or weights that do not fit its model.
    """
    card = read_card(folder)
    path = folder / WEIGHTS_NAME
    try:
        with open_regular(path, MOST_WEIGHT_BYTES) as file:
            header = read_header(file)
            _check_header(card, header, path)
            file.seek(0)
            data = bytearray(file.read())
    except TensorFileError as error:
        raise DetectorError(f"{path} is {error}; copy or export the package again") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.weights_sha256:
        raise DetectorError(
            f"{path} is damaged: its SHA-256 is {digest[:12]}..., {DETECTOR_CARD_NAME} says "
            f"{card.weights_sha256[:12]}...; copy or export the package again"
        )
    state = tensors_in(data, header)
    if invalid := [name for name in state if not state[name].isfinite().all()]:
        raise _misfit(path, f"tensors with values that are not finite: {count_names(invalid)}")
    model = build_model(card.model, len(card.classes), deployed=card.deployed)
    model.load_state_dict(state)
    return card, model


def _check_header(card: DetectorCard, header: FileHeader, path: Path) -> None:
    """Compare names and shapes with those of the model, which is built without memory for its weights.

    Raises:
        UserError: They differ, or the card describes no model.
    """
    try:
        # The convolutions first: a table may describe thousands, and building their modules takes seconds.
        expected = convolution_shapes(card.model, deployed=card.deployed)
        found = {name: tensor for name, tensor in header.tensors.items() if name in expected}
        if not (differences := compare_weights(expected, found)):
            with torch.device("meta"):
                model = build_model(card.model, len(card.classes), deployed=card.deployed)
                check_fit(model, len(card.classes), card.image_size)
            differences = compare_weights(model.state_dict(), header.tensors)
    except UserError as error:
        raise DetectorError(f"{path.with_name(DETECTOR_CARD_NAME)}: {error}") from error
    if differences:
        raise _misfit(path, str(differences))


def _misfit(path: Path, reason: str) -> DetectorError:
    return DetectorError(f"{path} does not fit the model of {DETECTOR_CARD_NAME}: {reason}; export the package again")


def _unreadable(path: Path, error: OSError) -> DetectorError:
    return DetectorError(
        f"cannot read {path}: {error.strerror or error}; a detector package is a folder with {DETECTOR_CARD_NAME} and "
        f"{WEIGHTS_NAME}"
    )


def read_card(folder: Path) -> DetectorCard:
    """Read the card of a detector package alone.

    Raises:
        DetectorError: No package, a damaged card, or one of a newer format.
    """
    path = folder / DETECTOR_CARD_NAME
    try:
        document = json.loads(read_regular(path, MOST_CARD_BYTES))
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise DetectorError(f"{path} is not JSON: {one_line(error)}") from error
    written = document.get("format") if isinstance(document, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise DetectorError(
            f"{path} has format {written}, this yolofleet reads formats up to {FORMAT}: use the version that wrote it, "
            "or a newer one"
        )
    return DetectorCard.parse(document, source=str(path))


def read_stored_card(package: Storage) -> dict[str, Any] | None:
    """Return the card of a package that may be anybody's, in a storage, as it is; None where there is none.

    Raises:
        DetectorError: It holds no JSON object.
        StorageError: It cannot be read, or is larger than a card.
    """
    if not package.exists(DETECTOR_CARD_NAME):
        return None
    try:
        document = json.loads(package.get_at_most(DETECTOR_CARD_NAME, MOST_CARD_BYTES))
    except (ValueError, RecursionError) as error:
        raise DetectorError(f"{package.url}/{DETECTOR_CARD_NAME} is not JSON: {one_line(error)}") from error
    if not isinstance(document, dict):
        raise DetectorError(f"{package.url}/{DETECTOR_CARD_NAME} is no JSON object, but {short(document)}")
    return document


def check_fit(model: Network, num_classes: int, image_size: int) -> None:
    """Refuse a number of classes or an image size that does not fit a model.

    Raises:
        DetectorError: The number of classes differs, or the size is not a multiple of its largest stride.
    """
    if num_classes != model.num_classes:
        raise DetectorError(f"the model predicts {plural(model.num_classes, 'class')}, the names are of {num_classes}")
    stride = model.max_stride
    if image_size < stride or image_size % stride:
        raise DetectorError(f"image size {image_size} is not a multiple of {stride}, the model's largest stride")
