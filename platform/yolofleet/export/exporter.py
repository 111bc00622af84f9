"""From a detector to a file for another runtime, in one of the built-in formats or a plugin's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolofleet.core.text import and_more
from yolofleet.evaluation.detector import Detector
from yolofleet.export.card import ExportCard, make_card, put_card
from yolofleet.export.formats import FORMATS, ExportFormat, Request
from yolofleet.export.onnx_graph import network_to_onnx
from yolofleet.export.onnx_suppression import add_suppression
from yolofleet.export.quantization import quantize
from yolofleet.export.runtime import NETWORK_NAME, OnnxNetwork
from yolofleet.export.settings import ExportError, InputShape, check_shape
from yolofleet.export.torch_files import load_safetensors, load_torchscript, write_safetensors, write_torchscript
from yolofleet.export.triton import write_repository

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["FORMATS", "Exported", "add_network", "export_detector"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A file that was written, and the card inside it."""

    path: Path
    card: ExportCard


def export_detector(detector: Detector, out: Path, request: Request) -> Exported:
    """Write a detector for another runtime.

    Args:
        detector: What to export; a training form is deployed first.
        out: The file; of Triton's format the model repository.
        request: The format and its options.

    Raises:
        UserError: The format is not known, the request does not fit the detector, or the file cannot be written.
    """
    export_format = FORMATS.get(request.format)
    check_shape(request.shape, detector.model.max_stride)
    is_quantized = request.calibration is not None
    if (request.thresholds or is_quantized) and not export_format.has_onnx_options:
        able = and_more([name for name, entry in FORMATS.items().items() if entry.has_onnx_options], 5)
        raise ExportError(f"--format {request.format} supports neither --nms nor --int8; these support them: {able}")
    if out.is_dir() and not export_format.is_folder:
        raise ExportError(f"{out} is a folder; name the file to write, {out / f'model.{request.format}'} say")
    card = make_card(detector.card, detector.model.strides, request.shape, request.thresholds, quantized=is_quantized)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Exported(path=export_format.write(out, detector, request, card), card=card)
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error.strerror or error}") from error


def add_network(package: Path) -> None:
    """Write the network of a detector package into it as ONNX, for any input, so that it predicts with it on CPUs.

    Raises:
        UserError: The package cannot be read or written.
    """
    detector = Detector.load(package)
    shape = InputShape(batch=1, image_size=detector.card.image_size, dynamic=True)
    export_detector(detector, package / NETWORK_NAME, Request(format="onnx", shape=shape))


def write_onnx(path: Path, detector: Detector, request: Request, card: ExportCard) -> Path:
    """Write one ONNX file."""
    path.write_bytes(_onnx_model(detector, request, card).SerializeToString())
    return path


def write_triton(folder: Path, detector: Detector, request: Request, card: ExportCard) -> Path:
    """Write the ONNX file into a model repository."""
    return write_repository(folder, request.name, _onnx_model(detector, request, card), card)


def _onnx_model(detector: Detector, request: Request, card: ExportCard) -> ModelProto:
    model = network_to_onnx(detector.model, request.shape)
    if request.calibration is not None:
        batch = 1 if request.shape.dynamic else request.shape.batch
        float_model, model = model, quantize(model, request.calibration, batch=batch)
        if request.on_networks is not None:
            request.on_networks(float_model, model)
    if request.thresholds is not None:
        model = add_suppression(model, request.thresholds, num_classes=len(detector.classes))
    put_card(model, card)
    return model


FORMATS.register("onnx")(ExportFormat(write=write_onnx, load=OnnxNetwork, has_onnx_options=True))
FORMATS.register("torchscript")(ExportFormat(write=write_torchscript, load=load_torchscript))
FORMATS.register("safetensors")(ExportFormat(write=write_safetensors, load=load_safetensors))
FORMATS.register("triton")(ExportFormat(write=write_triton, load=OnnxNetwork, has_onnx_options=True, is_folder=True))
