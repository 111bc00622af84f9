"""From a detector to a file for another runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yolofleet.evaluation.detector import Detector
from yolofleet.export.card import ExportCard, make_card, put_card
from yolofleet.export.onnx_graph import network_to_onnx
from yolofleet.export.onnx_suppression import add_suppression
from yolofleet.export.quantization import quantized
from yolofleet.export.runtime import NETWORK_NAME
from yolofleet.export.settings import ExportError, Format, InputShape, Thresholds, check_shape
from yolofleet.export.torch_files import write_safetensors, write_torchscript
from yolofleet.export.triton import write_repository

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is wanted.

    Attributes:
        format: of the result.
        shape: of the input.
        thresholds: for suppression inside the file; None leaves it out.
        calibration: (P, 3, H, W) uint8 images; given, the network is quantized to INT8.
        name: of the model in a Triton repository.
    """

    format: Format
    shape: InputShape
    thresholds: Thresholds | None = None
    calibration: NDArray[np.uint8] | None = None
    name: str = "detector"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        card: what it says of itself.
    """

    path: Path
    card: ExportCard


def export_detector(
    detector: Detector,
    out: Path,
    request: Request,
    *,
    on_networks: Callable[[ModelProto, ModelProto], None] | None = None,
) -> Exported:
    """Write a detector for another runtime.

    Args:
        detector: what to export; a training form is deployed first.
        out: the file; of Triton's format the model repository.
        request: what is wanted.
        on_networks: called with the float and the INT8 network, both without suppression, where there are both.

    Raises:
        UserError: the request does not fit the detector, or the file cannot be written.
    """
    check_shape(request.shape, detector.model.max_stride)
    if request.format in ("torchscript", "safetensors") and (request.thresholds or request.calibration is not None):
        raise ExportError(f"--format {request.format} knows neither --nms nor --int8; they belong to onnx and triton")
    card = make_card(
        detector.card,
        detector.model.strides,
        request.shape,
        request.thresholds,
        quantized=request.calibration is not None,
    )
    try:
        return Exported(path=_written(detector, out, request, card, on_networks), card=card)
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


def _written(
    detector: Detector,
    out: Path,
    request: Request,
    card: ExportCard,
    on_networks: Callable[[ModelProto, ModelProto], None] | None,
) -> Path:
    if request.format != "triton" and out.is_dir():
        raise ExportError(f"{out} is a folder; name the file to write, {out / f'model.{request.format}'} say")
    out.parent.mkdir(parents=True, exist_ok=True)
    if request.format == "torchscript":
        write_torchscript(out, detector.model, card)
        return out
    if request.format == "safetensors":
        write_safetensors(out, detector.model, card, detector.card)
        return out
    model = _onnx(detector, request, on_networks)
    put_card(model, card)
    if request.format == "triton":
        return write_repository(out, request.name, model, card)
    out.write_bytes(model.SerializeToString())
    return out


def _onnx(
    detector: Detector, request: Request, on_networks: Callable[[ModelProto, ModelProto], None] | None
) -> ModelProto:
    model = network_to_onnx(detector.model, request.shape)
    if request.calibration is not None:
        small = quantized(model, request.calibration, batch=1 if request.shape.dynamic else request.shape.batch)
        if on_networks is not None:
            on_networks(model, small)
        model = small
    if request.thresholds is not None:
        model = add_suppression(model, request.thresholds, num_classes=len(detector.classes))
    return model
