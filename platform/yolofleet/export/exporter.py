"""From a detector to a file for another runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yolofleet.evaluation.detector import Detector
from yolofleet.export.card import ExportCard, make_card
from yolofleet.export.formats import FORMATS, Request
from yolofleet.export.runtime import NETWORK_NAME
from yolofleet.export.settings import ExportError, InputShape, check_shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        card: Its description, which also lies in it.
    """

    path: Path
    card: ExportCard


def export_detector(detector: Detector, out: Path, request: Request) -> Exported:
    """Write a detector for another runtime.

    Args:
        detector: What to export; a training form is deployed first.
        out: The file; of a format that makes a folder, the folder.
        request: Format, input and options.

    Raises:
        UserError: The request does not fit the detector, or the file cannot be written.
    """
    export_format = FORMATS.get(request.format)
    check_shape(request.shape, detector.model.max_stride)
    if not export_format.has_nms_and_int8 and (request.thresholds or request.calibration is not None):
        able = " and ".join(name for name, kind in FORMATS.items().items() if kind.has_nms_and_int8)
        raise ExportError(f"--format {request.format} has neither --nms nor --int8; they belong to {able}")
    if not export_format.is_folder and out.is_dir():
        raise ExportError(f"{out} is a folder; name the file to write, {out / f'model.{request.format}'} say")
    card = make_card(
        detector.card,
        detector.model.strides,
        request.shape,
        request.thresholds,
        quantized=request.calibration is not None,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Exported(path=export_format.write(out, detector, request, card), card=card)
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error.strerror or error}") from error


def add_network(package: Path) -> None:
    """Put its network into a detector package as ONNX, for any input, so that it predicts with it on CPUs.

    Raises:
        UserError: The package cannot be read or written.
    """
    detector = Detector.load(package)
    shape = InputShape(batch=1, image_size=detector.card.image_size, dynamic=True)
    export_detector(detector, package / NETWORK_NAME, Request(format="onnx", shape=shape))
