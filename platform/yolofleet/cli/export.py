"""``yolofleet export``: a detector as a file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import JsonOption, ModelArgument, TrackingUri, print_result, refuse_given
from yolofleet.core.terminal import note

if TYPE_CHECKING:
    from torch import Tensor

    from yolofleet.evaluation.detector import Detector
    from yolofleet.export.formats import Request
    from yolofleet.export.settings import InputShape, Thresholds


def export(
    context: typer.Context,
    model: ModelArgument,
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="File to write (path or s3://); for triton, the model repository.")
    ],
    kind: Annotated[
        str, typer.Option("--format", help="onnx, torchscript, safetensors, triton, or a plugin's.")
    ] = "onnx",
    nms: Annotated[bool, typer.Option("--nms", help="Put NMS inside, as standard ONNX operators.")] = False,
    int8: Annotated[
        str | None, typer.Option(metavar="DATA", help="Quantize to INT8, calibrated on these shards.")
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Accept any batch and any input size.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Batch size, unless --dynamic.")] = 1,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels. Default: the model's.")] = None,
    confidence: Annotated[float | None, typer.Option(min=0, max=1, help="For --nms. Default: the model's.")] = None,
    iou: Annotated[float | None, typer.Option(min=0, max=1, help="For --nms. Default: the model's.")] = None,
    max_detections: Annotated[int | None, typer.Option(min=1, help="For --nms. Default: the model's.")] = None,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="For --nms: a box may have several classes, as in evaluation.")
    ] = False,
    calibration_images: Annotated[int, typer.Option(min=1, help="For --int8: number of calibration images.")] = 64,
    name: Annotated[str, typer.Option(help="For triton: name of the model in the repository.")] = "detector",
    verify: Annotated[bool, typer.Option("--verify", help="Run the result and compare it with torch.")] = False,
    verify_data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Shards to verify on. Default: random images.")
    ] = None,
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> int:
    """Write a detector for another runtime; with --verify, check that it finds the same objects there."""
    from yolofleet.cli.model_argument import package_folder
    from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED
    from yolofleet.evaluation.detector import Detector
    from yolofleet.export.exporter import FORMATS, export_detector
    from yolofleet.export.formats import Request
    from yolofleet.export.quantization import dataset_images
    from yolofleet.export.settings import InputShape, check_shape
    from yolofleet.storage.output import stored_output

    is_folder = FORMATS.get(kind).is_folder  # an unknown name is refused before the model is read
    if not nms:
        of_nms = ("confidence", "iou", "max_detections", "multi_label")
        refuse_given(context, of_nms, "without --nms no boxes are selected in the file")
    if int8 is None:
        refuse_given(context, ("calibration_images",), "without --int8 nothing is calibrated")
    if not is_folder:
        refuse_given(context, ("name",), f"--format {kind} writes no model repository")
    with package_folder(model, tracking_uri) as folder:
        detector = Detector.load(folder)
    side = image_size or detector.card.image_size
    shape = InputShape(batch=batch, image_size=side, dynamic=dynamic)
    check_shape(shape, detector.model.max_stride)
    thresholds = _thresholds(detector, confidence, iou, max_detections, multi_label) if nms else None
    quantization: dict[str, Any] = {}
    request = Request(
        format=kind,
        shape=shape,
        thresholds=thresholds,
        calibration=None if int8 is None else dataset_images(int8, side, calibration_images),
        name=name,
        on_networks=lambda *models: quantization.update(_report_quantization(models, detector, str(int8), shape)),
    )
    with stored_output(out) as path:
        exported = export_detector(detector, path, request)
        num_bytes = exported.path.stat().st_size
        shown = f"{out.rstrip('/')}{str(exported.path).removeprefix(str(path))}"
        document: dict[str, Any] = {"path": shown, "bytes": num_bytes, "card": exported.card.document()}
        lines = [f"{shown}: {num_bytes / 1e6:.1f} MB"]
        document |= quantization
        lines += [_format_evaluation(*entry) for entry in zip(("float", "INT8"), quantization.values(), strict=False)]
        is_equal = True
        if verify or verify_data is not None:
            is_equal, document["verified"], more = _verify(exported.path, detector, request, verify_data)
            lines += more
    print_result(document, lines, as_json=as_json)
    return EXIT_DONE if is_equal else EXIT_WORK_FAILED


def _thresholds(
    detector: Detector, confidence: float | None, iou: float | None, max_detections: int | None, multi_label: bool
) -> Thresholds:
    from yolofleet.export.settings import Thresholds

    card = detector.card
    return Thresholds(
        confidence=card.confidence if confidence is None else confidence,
        iou=card.iou if iou is None else iou,
        max_detections=card.max_detections if max_detections is None else max_detections,
        multi_label=multi_label,
    )


def _report_quantization(models: Any, detector: Detector, data: str, shape: InputShape) -> dict[str, Any]:
    from yolofleet.data.verification import open_verified
    from yolofleet.export.card import make_card
    from yolofleet.export.quantization import report_quantization

    note(f"evaluating the float and the INT8 network on {data}")
    card = make_card(detector.card, detector.model.strides, shape, None)
    return report_quantization(models, detector, open_verified(data), card, shape).as_json()


def _format_evaluation(label: str, entry: dict[str, Any]) -> str:
    ap, ap50 = ("none" if entry[key] is None else f"{entry[key]:.4f}" for key in ("AP", "AP50"))
    return f"{label:6} AP {ap}  AP50 {ap50}  {entry['milliseconds']:.1f} ms  {entry['megabytes']:.1f} MB"


def _verify(
    path: Path, detector: Detector, request: Request, data: str | None
) -> tuple[bool, dict[str, Any], list[str]]:
    """Run the exported file and compare it with torch.

    Returns:
        Whether the differences are those of rounding (those of INT8 are reported and accepted), the comparison as JSON
        values, and as lines.
    """
    from yolofleet.export.verification import random_batches
    from yolofleet.export.verification import verify as compare

    batches = random_batches(request.shape, detector.model.max_stride) if data is None else _batches(data, request)
    comparison = compare(path, request.format, detector, request.thresholds, batches)
    is_int8 = request.calibration is not None
    verdict = "INT8, so differences are expected" if is_int8 else "equal" if comparison.equal else "NOT equal"
    lines = [f"verified against torch: {comparison}: {verdict}"]
    if request.thresholds is not None and not comparison.num_boxes:
        lines.append("no detection was compared: name images with objects in --verify-data")
    return comparison.equal or is_int8, {**comparison.as_json(), "images": data or "random"}, lines


def _batches(data: str, request: Request) -> list[Tensor]:
    import torch

    from yolofleet.export.quantization import dataset_images

    images = torch.from_numpy(dataset_images(data, request.shape.image_size)).float() / 255
    size = request.shape.batch
    return [images[start : start + size] for start in range(0, len(images), size)]
