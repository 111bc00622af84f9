"""``yolofleet evaluate``: the COCO AP of a model, or of a file of detections, on a dataset."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from yolofleet.cli.options import Device, JsonOption, TrackingUri, print_result, refuse_given
from yolofleet.cli.progress import show_progress
from yolofleet.core.errors import UserError
from yolofleet.core.file_names import EVALUATION_CONFIDENCE, EVALUATION_IOU, EVALUATION_MAX_DETECTIONS
from yolofleet.core.terminal import note
from yolofleet.core.text import and_more, plural

if TYPE_CHECKING:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.average_precision import EvaluationResult
    from yolofleet.evaluation.detector import Detector
    from yolofleet.evaluation.diagnosis import Diagnosis
    from yolofleet.evaluation.ground_truth import GroundTruth
    from yolofleet.evaluation.protocol import Protocol

MOST_NAMES = 6
OF_MODELS = (
    "image_size",
    "batch_size",
    "confidence",
    "iou",
    "protocol",
    "rectangular",
    "precision",
    "augment",
    "table10",
    "device",
)
"""Options on how a model detects; a result file is evaluated as it is."""
OF_ONE_EVALUATION = (
    "precision",
    "results",
    "report",
    "augment",
    "confidence",
    "iou",
    "max_detections",
    "area",
    "classes",
    "class_agnostic",
)
"""Options that Table 10 cannot follow: it makes four evaluations, by the published protocol."""


def evaluate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run directory, a detector package, NAME@ALIAS, NAME/VERSION, or a result file (.json).",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A dataset (folder or s3://), or for a result file its COCO annotations."),
    ],
    results: Annotated[
        str | None, typer.Option(help="Write the detections to this COCO result file (path or s3://).")
    ] = None,
    report: Annotated[
        str | None, typer.Option(help="Write a page with curves and images into this folder (path or s3://).")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Long side of the input. Default: the model's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that pass through the network together.")] = 16,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="Lowest score that counts.")] = EVALUATION_CONFIDENCE,
    iou: Annotated[
        float, typer.Option(min=0, max=1, help="IoU above which NMS drops the lower-scored box.")
    ] = EVALUATION_IOU,
    max_detections: Annotated[
        int | None,
        typer.Option(
            min=1, help="Detections kept per image, and counted per class in AP. Default: 300, and COCO's 100."
        ),
    ] = None,
    area: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LOW-HIGH", help="Object sizes, by side in pixels, instead of small=0-32 and so on."),
    ] = None,
    classes: Annotated[list[str] | None, typer.Option(help="Evaluate only these classes: person,car.")] = None,
    class_agnostic: Annotated[
        bool, typer.Option("--class-agnostic", help="Let a detection match an object of any class.")
    ] = False,
    boxes: Annotated[
        str | None,
        typer.Option(
            help="For a result file: xywh, xyxy or cxcywh in pixels; with an n at the end, as shares of the image."
        ),
    ] = None,
    protocol: Annotated[
        Literal["square", "published"],
        typer.Option(help="published: --rectangular, fp16 on a GPU, and the published thresholds."),
    ] = "square",
    rectangular: Annotated[
        bool, typer.Option("--rectangular", help="Pad only as far as needed: faster, figures differ a little.")
    ] = False,
    precision: Annotated[
        Literal["fp32", "fp16"] | None,
        typer.Option(help="Precision of the network. Default: fp32.", show_default=False),
    ] = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Show the network each image at three scales, once mirrored (TTA).")
    ] = False,
    table10: Annotated[
        bool, typer.Option("--table10", help="Compare fp16 and fp32 at IoU 0.65 and 0.70, like the paper's Table 10.")
    ] = False,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on a dataset: the twelve COCO figures, each class, and a diagnosis of the errors."""
    from yolofleet.cli.evaluation_tables import format_settings, format_tables
    from yolofleet.evaluation.diagnosis import diagnose
    from yolofleet.evaluation.protocol import parse_protocol
    from yolofleet.evaluation.readings import check_box_format
    from yolofleet.storage.output import stored_output

    coco_protocol = parse_protocol(max_detections, area or (), classes or (), class_agnostic)
    thresholds = {"--confidence": confidence, "--iou": iou, "--max-detections": max_detections}
    is_file = is_result_file(model)
    if is_file:
        refuse_given(context, OF_MODELS, f"{model} holds detections, and no model runs")
    else:
        refuse_given(context, ("boxes",), f"{model} is no file of detections")
    if protocol == "published":
        _check_published(thresholds, precision, augment=augment)
    if table10:
        reason = "--table10 prints four evaluations of the published protocol, on all classes"
        refuse_given(context, OF_ONE_EVALUATION, reason)
    started = time.monotonic()
    truth: GroundTruth | None = None
    settings: dict[str, Any] = {}
    if is_file:
        dataset, result, truth = _evaluate_file(Path(model), data, coco_protocol, boxes and check_box_format(boxes))
    else:
        from yolofleet.cli.model_argument import open_detector
        from yolofleet.evaluation.evaluate import classes_unknown_to, evaluation_precision
        from yolofleet.evaluation.evaluate import evaluate as evaluate_model

        detector = open_detector(model, device, tracking_uri)
        dataset = _open_dataset(data)
        if unknown := classes_unknown_to(detector.classes, dataset.classes):
            known = _join_names(detector.classes)
            note(f"warning: the model does not know {_join_names(unknown)}, so AP is 0 there; it knows {known}")
        size = image_size or detector.card.image_size
        if table10:
            _print_table10(detector, dataset, size, batch_size, as_json=as_json)
            return
        settings = {
            "rectangular": rectangular or protocol == "published",
            "precision": precision or evaluation_precision(protocol, detector.device),
            "augment": augment,
            "confidence": confidence,
            "iou": iou,
            "max_detections": max_detections or EVALUATION_MAX_DETECTIONS,
            "image_size": size,
            "batch_size": batch_size,
        }
        with show_progress("evaluating", len(dataset)) as advance:
            result = evaluate_model(
                detector.network if settings["precision"] == "fp32" else detector.model,
                dataset,
                classes=detector.classes,
                device=detector.device,
                protocol=coco_protocol,
                on_batch=lambda batch: advance(len(batch.image_ids) + len(batch.skipped)),
                **settings,
            )
        settings["device"] = str(detector.device)
    seconds = time.monotonic() - started
    if unreachable := result.average_precision.num_unreachable:
        note(
            f"warning: {plural(unreachable, 'object')} cannot be found: of one class in one image only the best "
            f"{plural(coco_protocol.max_detections, 'detection counts', 'detections count')}, and some images have "
            "more objects; raise --max-detections"
        )
    if results is not None:
        own_ids = (truth.images.source_ids, truth.categories.source_ids) if truth else ()
        with stored_output(results) as file:
            result.detections.write(file, *own_ids)
    how = format_settings(settings, protocol) if settings else ""
    diagnosis = diagnose(result.ground_truth, result.detections, coco_protocol)
    page = _write_report(report, model, data, how, dataset, result, diagnosis) if report is not None else None
    if as_json:
        facts = {"model": model, "data": data, "seconds": round(seconds, 3), **result.as_json()}
        facts["diagnosis"] = diagnosis.as_json()
        print_result({**facts, **({"settings": settings} if settings else {})}, (), as_json=True)
        return
    files = [f"{label}: {path}" for label, path in (("detections", results), ("report", page)) if path is not None]
    print_result(None, [format_tables(result, diagnosis, seconds), *filter(None, [how]), *files], as_json=False)


def _check_published(thresholds: dict[str, float | int | None], precision: str | None, *, augment: bool) -> None:
    """Raise `UserError` for options that would make something else of the published protocol."""
    fixed = {"--confidence": EVALUATION_CONFIDENCE, "--iou": EVALUATION_IOU, "--max-detections": None}
    changed = [name for name, value in thresholds.items() if value not in (fixed[name], EVALUATION_MAX_DETECTIONS)]
    changed += ["--precision"] * (precision is not None) + ["--augment"] * augment
    if changed:
        raise UserError(
            f"--protocol published fixes {and_more(changed, len(changed))}; leave out --protocol and use "
            f"--rectangular instead, which pads in the same way"
        )


def _print_table10(
    detector: Detector, dataset: ShardDataset, image_size: int, batch_size: int, *, as_json: bool
) -> None:
    from yolofleet.evaluation.precision_table import (
        NUM_PASSES,
        precision_document,
        precision_lines,
        precision_rows,
    )

    with show_progress("evaluating", NUM_PASSES * len(dataset)) as advance:
        rows = precision_rows(
            detector.model,
            dataset,
            image_size=image_size,
            classes=detector.classes,
            batch_size=batch_size,
            device=detector.device,
            on_batch=lambda batch: advance(len(batch.image_ids) + len(batch.skipped)),
        )
    device = detector.device.type
    print_result(precision_document(rows, device), precision_lines(rows, device), as_json=as_json)


def _join_names(classes: list[tuple[int, str]]) -> str:
    names = [name for _, name in classes]
    return and_more(names, MOST_NAMES)


def is_result_file(model: str) -> bool:
    """Return whether a MODEL argument is a file of detections."""
    from yolofleet.evaluation.json_file import is_json_name

    return is_json_name(model) and "://" not in model and not Path(model).is_dir()


def _open_dataset(data: str) -> ShardDataset:
    from yolofleet.data.verification import open_verified
    from yolofleet.evaluation.json_file import is_json_name

    if is_json_name(data) and Path(data).is_file():
        raise UserError(
            f"{data} is a file: a model is evaluated on a sharded dataset; make one with 'yolofleet data shard'"
        )
    return open_verified(data)


def _evaluate_file(
    path: Path, data: str, protocol: Protocol, box_format: str | None
) -> tuple[ShardDataset | None, EvaluationResult, GroundTruth]:
    """Evaluate a COCO result file on a dataset, or on a COCO annotation file."""
    from yolofleet.evaluation.average_precision import EvaluationResult, coco_average_precision
    from yolofleet.evaluation.ground_truth import GroundTruth, read_ground_truth
    from yolofleet.evaluation.json_file import is_json_name
    from yolofleet.evaluation.result_file import note_low_ap50, read_results

    is_zip = data.lower().endswith(".zip") and Path(data).is_file()
    is_file = is_zip or (is_json_name(data) and not Path(data).is_dir())
    dataset = None if is_file else _open_dataset(data)
    skipped: list[tuple[str, str]] = []
    truth = read_ground_truth(Path(data)) if dataset is None else GroundTruth.of(dataset.annotations(skipped))
    detections, notes = read_results(path, truth, box_format)
    precision = coco_average_precision(truth.document, detections, protocol)
    notes += note_low_ap50(precision)
    for entry in notes:
        note(f"note: {entry.text}")
    result = EvaluationResult(
        average_precision=precision,
        ground_truth=truth.document,
        detections=detections,
        skipped=tuple(skipped),
        notes=tuple(notes),
    )
    return dataset, result, truth


def _write_report(
    folder: str,
    model: str,
    data: str,
    how: str,
    dataset: ShardDataset | None,
    result: EvaluationResult,
    diagnosis: Diagnosis,
) -> str:
    from yolofleet.evaluation.report import render_report
    from yolofleet.evaluation.samples import draw_outcomes
    from yolofleet.storage import open_storage

    drawn = {} if dataset is None else draw_outcomes(dataset, diagnosis.galleries, diagnosis.images)
    facts = {"model": model, "data": data, **({"settings": how} if how else {})}
    if result.notes:
        facts["notes"] = "; ".join(entry.text for entry in result.notes)
    title = f"Evaluation of {model}"
    page = render_report(result, title=title, facts=facts, diagnosis=diagnosis.as_json(), drawn=drawn)
    open_storage(folder).put("index.html", page.encode())
    return f"{folder.rstrip('/')}/index.html"
