"""Settings of an export: the input of the network, the thresholds of suppression, names of inputs and outputs.

The packages of the extra `export` are checked here too: they are installed only where detectors are exported or run
by another runtime than torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolofleet.core.errors import UserError, is_installed

INPUT_NAME = "images"
DECODED_NAME = "decoded"
DETECTIONS_NAME = "detections"
COUNT_NAME = "num_detections"
CURE = "install it with: pip install 'yolofleet[export]'"


class ExportError(UserError):
    """A detector cannot be exported as requested, or an exported file cannot be run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Thresholds of suppression, as for `yolofleet.evaluation.nms`.

    Attributes:
        confidence: A score must exceed this.
        iou: A box that overlaps a better one of its class by more than this is suppressed.
        max_detections: Detections kept per image.
        multi_label: Each class above the confidence makes a detection; otherwise only a box's best class does.
    """

    confidence: float
    iou: float
    max_detections: int
    multi_label: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class InputShape:
    """The network's input.

    Attributes:
        batch: Images that pass together; with `dynamic` the number that the file is traced with.
        image_size: Height and width in pixels, multiples of the model's largest stride.
        dynamic: Whether the file also runs with any other batch, height and width.
    """

    batch: int
    image_size: int
    dynamic: bool


def check_shape(shape: InputShape, stride: int) -> None:
    """Refuse an input that does not fit a model of this stride.

    Raises:
        ExportError: The batch is empty, or the image size is not a multiple of the stride.
    """
    if shape.batch < 1:
        raise ExportError(f"--batch {shape.batch}: at least one image passes the network")
    if shape.image_size < stride or shape.image_size % stride:
        near = max(stride, round(shape.image_size / stride) * stride)
        raise ExportError(
            f"--image-size {shape.image_size} is not a multiple of {stride}, the model's largest stride; take {near}"
        )


def require_packages(*names: str) -> None:
    """Refuse to work without packages that are only installed for exporting.

    Raises:
        ExportError: One of them is missing.
    """
    missing = [name for name in names if not is_installed(name)]
    if missing:
        raise ExportError(f"the package {missing[0]} is not installed; {CURE}")
