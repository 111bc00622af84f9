"""``yolofleet evaluate``: the COCO AP of a model, or of a file of detections, on a dataset."""

from __future__ import annotations

import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.options import Device, JsonOption, print_result
from yolofleet.cli.progress import show_progress
from yolofleet.core.file_names import EVALUATION_CONFIDENCE, EVALUATION_IOU, EVALUATION_MAX_DETECTIONS
from yolofleet.core.terminal import note
from yolofleet.core.text import and_more

if TYPE_CHECKING:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.evaluate import EvaluationResult
    from yolofleet.evaluation.ground_truth import GroundTruth
    from yolofleet.evaluation.protocol import Protocol

MOST_NAMES = 6


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run directory, a detector package, models:/NAME@ALIAS, or a result file (.json).",
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
    batch_size: Annotated[int, typer.Option(min=1, help="Images that pass the network together.")] = 16,
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
        typer.Option(metavar="NAME=LOW-HIGH", help="Sizes by the side in pixels, instead of small=0-32 and so on."),
    ] = None,
    classes: Annotated[list[str] | None, typer.Option(help="Evaluate these classes only: person,car.")] = None,
    class_agnostic: Annotated[
        bool, typer.Option("--class-agnostic", help="Let a detection match an object of any class.")
    ] = False,
    boxes: Annotated[
        str | None,
        typer.Option(
            help="Of a result file: xywh, xyxy or cxcywh in pixels; with an n at the end: shares of the image."
        ),
    ] = None,
    rectangular: Annotated[
        bool, typer.Option("--rectangular", help="Pad only as far as needed: faster, figures differ a little.")
    ] = False,
    device: Device = "auto",
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server of a registered version.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on a dataset by COCO AP: the twelve figures, and each class."""
    from yolofleet.cli.model_argument import open_detector
    from yolofleet.evaluation.evaluate import classes_unknown_to
    from yolofleet.evaluation.evaluate import evaluate as evaluate_model
    from yolofleet.evaluation.protocol import parse_protocol
    from yolofleet.evaluation.readings import check_box_format
    from yolofleet.storage.output import stored_output

    protocol = parse_protocol(max_detections, area or (), classes or (), class_agnostic)
    started = time.monotonic()
    truth: GroundTruth | None = None
    if is_result_file(model):
        dataset, result, truth = _evaluate_file(Path(model), data, protocol, boxes and check_box_format(boxes))
    else:
        detector = open_detector(model, device, tracking_uri)
        dataset = _open_dataset(data)
        if unknown := classes_unknown_to(detector.classes, dataset.classes):
            known = _join_names(detector.classes)
            note(f"warning: the model does not know {_join_names(unknown)}, so AP is 0 there; it knows {known}")
        with show_progress("evaluating", len(dataset)) as advance:
            result = evaluate_model(
                detector.network,
                dataset,
                image_size=image_size or detector.card.image_size,
                classes=detector.classes,
                batch_size=batch_size,
                device=detector.device,
                confidence=confidence,
                iou=iou,
                max_detections=max_detections or EVALUATION_MAX_DETECTIONS,
                protocol=protocol,
                rectangular=rectangular,
                on_batch=lambda batch: advance(len(batch.image_ids) + len(batch.skipped)),
            )
    seconds = time.monotonic() - started
    if unreachable := result.average_precision.num_unreachable:
        note(
            f"warning: {unreachable} objects cannot be found: of one class in one image only the best "
            f"{protocol.max_detections} detections count, and some images have more objects; raise --max-detections"
        )
    if results is not None:
        own_ids = (truth.images.source_ids, truth.categories.source_ids) if truth else ()
        with stored_output(results) as file:
            result.detections.write(file, *own_ids)
    page = _write_report(report, model, data, dataset, result) if report is not None else None
    if as_json:
        facts = {"model": model, "data": data, "seconds": round(seconds, 3), **result.as_json()}
        print_result(facts, (), as_json=True)
        return
    files = [f"{label}: {path}" for label, path in (("detections", results), ("report", page)) if path is not None]
    print_result(None, [_format_tables(result, seconds), *files], as_json=False)


def _join_names(classes: list[tuple[int, str]]) -> str:
    names = [name for _, name in classes]
    return and_more(names, MOST_NAMES)


def is_result_file(model: str) -> bool:
    """Return whether a MODEL argument is a file of detections."""
    from yolofleet.evaluation.json_file import is_json_name

    return is_json_name(model) and "://" not in model and not Path(model).is_dir()


def _open_dataset(data: str) -> ShardDataset:
    from yolofleet.core.errors import UserError
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
    from yolofleet.evaluation.average_precision import coco_average_precision
    from yolofleet.evaluation.evaluate import EvaluationResult
    from yolofleet.evaluation.ground_truth import GroundTruth, read_ground_truth
    from yolofleet.evaluation.json_file import is_json_name
    from yolofleet.evaluation.result_file import note_low_ap50, read_results

    dataset = None if is_json_name(data) and not Path(data).is_dir() else _open_dataset(data)
    skipped: list[tuple[str, str]] = []
    truth = read_ground_truth(Path(data)) if dataset is None else GroundTruth.of(dataset.annotations(skipped))
    detections, notes = read_results(path, truth, box_format)
    precision = coco_average_precision(truth.document, detections, protocol)
    notes += note_low_ap50(precision)
    for entry in notes:
        note(f"note: {entry.text}")
    result = EvaluationResult(
        average_precision=precision, detections=detections, skipped=tuple(skipped), notes=tuple(notes)
    )
    return dataset, result, truth


def _write_report(folder: str, model: str, data: str, dataset: ShardDataset | None, result: EvaluationResult) -> str:
    from yolofleet.evaluation.report import render_report
    from yolofleet.evaluation.samples import draw_samples
    from yolofleet.storage import open_storage

    images = [] if dataset is None else draw_samples(dataset, result.detections)
    facts = {"model": model, "data": data}
    if result.notes:
        facts["notes"] = "; ".join(entry.text for entry in result.notes)
    page = render_report(result, title=f"Evaluation of {model}", facts=facts, images=images)
    open_storage(folder).put("index.html", page.encode())
    return f"{folder.rstrip('/')}/index.html"


def _format_tables(result: EvaluationResult, seconds: float) -> str:
    """Return the figures and the classes as tables, in colours where there is a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console() if sys.stdout is not None and sys.stdout.isatty() else Console(width=110)
    console.begin_capture()
    found = result.average_precision
    console.print(
        f"[bold]{found.num_images}[/] images, {found.num_objects} objects, {found.num_crowds} crowds, "
        f"{found.num_detections} detections, {seconds:.1f} s"
    )
    if result.skipped:
        skipped = and_more([f"{key} ({reason})" for key, reason in result.skipped], 3)
        console.print(
            f"[yellow]{len(result.skipped)} images could not be read; they count as empty, or where the annotation is "
            f"damaged not at all: {escape(skipped)}"
        )
    figures = Table(box=SIMPLE_HEAD)
    for heading in ("precision", "", "recall", ""):
        figures.add_column(heading, justify="right" if not heading else "left")
    for pair in zip_longest(found.protocol.precision_names, found.protocol.recall_names):
        figures.add_row(*(text for name in pair for text in (name, name and _format(result.figures[name]))))
    console.print(figures)
    classes = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    classes.add_column("class", no_wrap=True, overflow="ellipsis")
    for heading in ("objects", "found", "AP", "AP50", "AP75", f"AR_{found.protocol.max_detections}", "F1", "score"):
        classes.add_column(heading, justify="right", no_wrap=True, min_width=6)
    present = [entry for entry in result.per_class if entry.num_objects]
    for entry in present:
        numbers = (entry.ap, entry.ap50, entry.ap75, entry.average_recall, entry.best_f1, entry.best_confidence)
        classes.add_row(escape(entry.name), str(entry.num_objects), str(entry.num_detections), *map(_format, numbers))
    console.print(classes)
    console.print("F1: the best at IoU 0.50; score: the confidence it is reached at")
    if len(present) < len(result.per_class):
        console.print(f"{len(result.per_class) - len(present)} classes without objects are left out")
    return console.end_capture().rstrip("\n")


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
