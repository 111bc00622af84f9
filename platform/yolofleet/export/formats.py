"""Export formats: each writes a detector as a file for another runtime, and runs that file to verify it.

The extension point `FORMATS` names them. A format of one's own is one `ExportFormat` and one registering line in a
plugin (`yolofleet.core.extension_points`); ``yolofleet export --format NAME`` then accepts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from yolofleet.core.extension_points import ExtensionPoint
from yolofleet.evaluation.detector import Detector
from yolofleet.export.card import ExportCard, put_card
from yolofleet.export.onnx_graph import network_to_onnx
from yolofleet.export.onnx_suppression import add_suppression
from yolofleet.export.quantization import quantized
from yolofleet.export.runtime import OnnxNetwork
from yolofleet.export.settings import InputShape, Thresholds
from yolofleet.export.torch_files import load_safetensors, load_torchscript, write_safetensors, write_torchscript
from yolofleet.export.triton import write_repository

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to export.

    Attributes:
        format: Name of a format.
        shape: Shape of the input.
        thresholds: Thresholds of NMS inside the file; None leaves NMS out.
        calibration: (P, 3, H, W) uint8 images; with them the network is quantized to INT8.
        name: Name of the model in a Triton repository.
        on_networks: Called with the float and the INT8 network, both without NMS, where there are both.
    """

    format: str
    shape: InputShape
    thresholds: Thresholds | None = None
    calibration: NDArray[np.uint8] | None = None
    name: str = "detector"
    on_networks: Callable[[ModelProto, ModelProto], None] | None = None


@dataclass(frozen=True)
class ExportFormat:
    """A format of exported files.

    Attributes:
        write: Writes the deployed network with its card, and returns the file that `load` reads.
        load: Returns what a written file computes: images (B, 3, H, W) in 0..1 to the network's decoded output. In a
            format with NMS it also has a method ``detections``, as `OnnxNetwork` has. Raises `ExportError` where the
            file cannot be run.
        is_folder: Whether the result is a folder and not one file.
        has_nms_and_int8: Whether a request may have thresholds and calibration images.
    """

    write: Callable[[Path, Detector, Request, ExportCard], Path]
    load: Callable[[Path], Callable[[Tensor], Tensor]]
    is_folder: bool = False
    has_nms_and_int8: bool = False


FORMATS: ExtensionPoint[ExportFormat] = ExtensionPoint("export format")


def _onnx_model(detector: Detector, request: Request, card: ExportCard) -> ModelProto:
    model = network_to_onnx(detector.model, request.shape)
    if request.calibration is not None:
        small = quantized(model, request.calibration, batch=1 if request.shape.dynamic else request.shape.batch)
        if request.on_networks is not None:
            request.on_networks(model, small)
        model = small
    if request.thresholds is not None:
        model = add_suppression(model, request.thresholds, num_classes=len(detector.classes))
    put_card(model, card)
    return model


def _write_onnx(out: Path, detector: Detector, request: Request, card: ExportCard) -> Path:
    out.write_bytes(_onnx_model(detector, request, card).SerializeToString())
    return out


def _write_triton(out: Path, detector: Detector, request: Request, card: ExportCard) -> Path:
    return write_repository(out, request.name, _onnx_model(detector, request, card), card)


def _write_torchscript(out: Path, detector: Detector, request: Request, card: ExportCard) -> Path:
    write_torchscript(out, detector.model, card)
    return out


def _write_safetensors(out: Path, detector: Detector, request: Request, card: ExportCard) -> Path:
    write_safetensors(out, detector.model, card, detector.card)
    return out


FORMATS.register("onnx")(ExportFormat(_write_onnx, OnnxNetwork, has_nms_and_int8=True))
FORMATS.register("torchscript")(ExportFormat(_write_torchscript, load_torchscript))
FORMATS.register("safetensors")(ExportFormat(_write_safetensors, load_safetensors))
FORMATS.register("triton")(ExportFormat(_write_triton, OnnxNetwork, is_folder=True, has_nms_and_int8=True))
