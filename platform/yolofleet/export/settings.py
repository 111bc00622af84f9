"""Settings of an exported file, and the check for packages that are installed only where detectors are exported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from yolofleet.core.errors import UserError

INPUT_NAME = "images"
DECODED_NAME = "decoded"
DETECTIONS_NAME = "detections"
COUNT_NAME = "num_detections"


class ExportError(UserError):
    """A detector cannot be exported as it was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """How suppression chooses, as `yolofleet.evaluation.nms` understands it.

    Attributes:
        confidence: a score must exceed this.
        iou: a box overlapping a better one of its class by more than this is suppressed.
        max_detections: kept per image.
        multi_label: each class above the confidence makes a detection; otherwise only a box's best class does.
    """

    confidence: float
    iou: float
    max_detections: int
    multi_label: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class InputShape:
    """The network's input.

    Attributes:
        batch: images that pass together; with `dynamic` the number that the file is traced with.
        image_size: height and width in pixels, multiples of the model's largest stride.
        dynamic: whether batch, height and width may be any others when the file is run.
    """

    batch: int
    image_size: int
    dynamic: bool


def check_shape(shape: InputShape, stride: int) -> None:
    """Refuse an input that no model of this stride takes.

    Raises:
        ExportError: the batch is empty, or the image size is no multiple of the stride.
    """
    if shape.batch < 1:
        raise ExportError(f"--batch {shape.batch}: at least one image passes the network")
    if shape.image_size < stride or shape.image_size % stride:
        near = max(stride, round(shape.image_size / stride) * stride)
        raise ExportError(
            f"--image-size {shape.image_size} is not a multiple of {stride}, the model's largest stride; take {near}"
        )


CURE = "install it with: pip install 'yolofleet[export]'"


def require_packages(*names: str) -> None:
    """Refuse to go on without packages that are only installed for exporting.

    Raises:
        ExportError: one of them is missing.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ExportError(f"the package {missing[0]} is not installed; {CURE}")
