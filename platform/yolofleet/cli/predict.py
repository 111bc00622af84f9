"""``yolofleet predict``: finds objects in images, draws them and writes them down.

Without ``--workers`` this process predicts and draws. With it workers of Ray predict very many images in parts, without
drawing; parts that are there already are not repeated, so the same command resumes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import (
    Device,
    FollowLinks,
    JsonOption,
    ModelArgument,
    TrackingUri,
    print_result,
    refuse_given,
)
from yolofleet.cli.predict_folders import (
    PART_NAME,
    RECORDS_NAME,
    check_overwriting,
    check_separate,
    make_folder,
    output_folders,
    write_new,
)
from yolofleet.core.errors import UserError
from yolofleet.core.file_names import MANIFEST_NAME
from yolofleet.core.terminal import note
from yolofleet.core.text import and_more, plural

if TYPE_CHECKING:
    from yolofleet.cluster.prediction_parts import ImageSource, PredictionPlan
    from yolofleet.evaluation.detector import Detector
    from yolofleet.evaluation.detector_package import DetectorCard

MOST_PROBLEMS = 5


def predict(
    context: typer.Context,
    model: ModelArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE", help="Images, or folders of them; with --workers also shards.", show_default=False
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", help="Folder for the images and detections.json (path or s3://).")
    ] = "predictions",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Predict with this many Ray workers, without drawing; the same command resumes."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest score that counts. Default: the model's.")
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="IoU above which NMS drops the lower-scored box. Default: the model's."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Long side of the input. Default: the model's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that pass through the network together.")] = 8,
    device: Device = "auto",
    objectness: Annotated[
        Path | None,
        typer.Option(help="Draw the objectness of every level of the lead and auxiliary heads into this folder."),
    ] = None,
    part_size: Annotated[
        int, typer.Option(min=1, help="With --workers: images in each part that is written at once.")
    ] = 256,
    tracking_uri: TrackingUri = None,
    follow_links: FollowLinks = False,
    as_json: JsonOption = False,
) -> None:
    """Find objects in images. Draws them into --out and writes detections.json, a COCO document."""
    if workers is None:
        refuse_given(context, ("part_size",), "without --workers images are not predicted in parts")
        options = {"confidence": confidence, "iou": iou, "image_size": image_size, "batch_size": batch_size}
        paths = image_paths(images, follow_links=follow_links, out=out, objectness=objectness)
        _predict_here(model, paths, out, options, device, tracking_uri, objectness, as_json=as_json)
        return
    if objectness is not None:
        raise UserError("--objectness draws images, and --workers does not: leave one of them out")
    from yolofleet.cluster.prediction_parts import PredictionPlan

    source = image_source(images, follow_links=follow_links, out=out)
    package, card = read_package(model, tracking_uri)
    plan = PredictionPlan(
        weights_sha256=card.weights_sha256,
        data_digest=source.digest,
        num_images=len(source),
        part_size=part_size,
        confidence=card.confidence if confidence is None else confidence,
        iou=card.iou if iou is None else iou,
        max_detections=card.max_detections,
        image_size=card.image_size if image_size is None else image_size,
    )
    _predict_missing_parts(package, source, out, plan, workers=workers, device=device, batch_size=batch_size)
    _merge_parts(out, plan, [(entry.id, entry.name) for entry in card.classes], as_json=as_json)


def image_paths(images: list[str], *, follow_links: bool, out: str = "", objectness: Path | None = None) -> list[Path]:
    """Return the images that the arguments name; of a folder all that it holds, except what is in the output folders.

    Raises:
        UserError: There is no image, or an output folder is one that holds images.
    """
    from yolofleet.data.problems import ProblemLog
    from yolofleet.data.source_folder import IMAGE_EXTENSIONS, SourceFolder, is_image_name

    outputs = output_folders(out, objectness)
    paths: list[Path] = []
    problems = ProblemLog()
    for path in map(Path, images):
        if os.path.isfile(path / MANIFEST_NAME):  # unlike those of a Path, no name makes these functions raise
            raise UserError(f"{path} is a sharded dataset: predict it by itself, with --workers N")
        if os.path.isdir(path):
            inside = []
            left_out = [folder for folder in outputs.values() if not path.resolve().is_relative_to(folder)]
            for entry in SourceFolder(path, problems, follow_links=follow_links).list():
                file = path / entry.key
                if any(file.resolve().is_relative_to(folder) for folder in left_out):
                    continue  # what an earlier call drew
                if is_image_name(entry.key):
                    inside.append(file)
                else:
                    problems.add("file_not_image", str(path / entry.key))
            if not inside:
                reasons = problems.reasons() or ", ".join(sorted(IMAGE_EXTENSIONS))
                raise UserError(f"{path} is a folder without images ({reasons})")
            paths += inside
        elif not os.path.exists(path):
            raise UserError(f"there is no image {path}")
        else:
            paths.append(path)
    for option, folder in outputs.items():
        check_separate(option, folder, paths)
    if reasons := problems.reasons(("note", "drop")):
        note(f"left out: {reasons}")
    return paths


def image_source(images: list[str], *, follow_links: bool, out: str = "") -> ImageSource:
    """Return the images that the arguments name: a sharded dataset, or files and folders of them."""
    from yolofleet.cluster.prediction_parts import FileImages, ShardImages
    from yolofleet.storage import open_storage

    if len(images) == 1 and ("://" in images[0] or open_storage(images[0]).exists(MANIFEST_NAME)):
        return ShardImages(images[0])
    return FileImages(image_paths(images, follow_links=follow_links, out=out))


def read_package(model: str, tracking_uri: str | None) -> tuple[dict[str, bytes], DetectorCard]:
    """Return the files of a detector package that a worker needs, to be sent to other hosts, and the package's card.

    Raises:
        UserError: There is no such model, or it is damaged.
    """
    from yolofleet.cli.model_argument import package_folder
    from yolofleet.cluster.batch_prediction import PACKAGE_FILES
    from yolofleet.evaluation.detector import Detector

    with package_folder(model, tracking_uri) as folder:
        card = Detector.load(folder).card
        return {name: (folder / name).read_bytes() for name in PACKAGE_FILES if (folder / name).is_file()}, card


def _predict_missing_parts(
    package: Mapping[str, bytes], source: ImageSource, out: str, plan: PredictionPlan, **options: Any
) -> None:
    from yolofleet.cli.progress import show_progress
    from yolofleet.cluster.batch_prediction import predict_parts
    from yolofleet.cluster.prediction_parts import missing_parts
    from yolofleet.storage import open_storage

    storage = open_storage(out)
    missing = missing_parts(storage, plan)
    if len(missing) < plan.num_parts:
        note(f"there already: {plan.num_parts - len(missing)} of {plural(plan.num_parts, 'part')}")
    if missing:
        with show_progress("images", sum(len(plan.images(part)) for part in missing)) as advance:
            predict_parts(package, source, plan, storage.url, missing, on_part=advance, **options)


def _merge_parts(out: str, plan: PredictionPlan, classes: list[tuple[int, str]], *, as_json: bool) -> None:
    from yolofleet.cluster.prediction_parts import DOCUMENT_KEY, RESULTS_KEY, merge_parts
    from yolofleet.storage import open_storage

    counts, problems = merge_parts(open_storage(out), plan, classes)
    document, results = f"{out}/{DOCUMENT_KEY}", f"{out}/{RESULTS_KEY}"
    lines = [
        f"{document}: {plural(counts['annotations'], 'detection')} in {plural(counts['images'], 'image')}",
        f"{results}: the same as a COCO result file",
    ]
    print_result({"detections": document, "results": results, **counts}, lines, as_json=as_json)
    _raise_for(problems, plan.num_images)


def _predict_here(
    model: str,
    paths: list[Path],
    out: str,
    options: dict[str, Any],
    device: str,
    tracking_uri: str | None,
    objectness: Path | None,
    *,
    as_json: bool,
) -> None:
    """Predict in this process and draw the detections, and the objectness into a folder of its own."""
    from yolofleet.cli.model_argument import open_detector
    from yolofleet.data.draw import LONGEST_JPEG_SIDE, draw_detections, encode
    from yolofleet.evaluation.images import ImageReadError, read_image
    from yolofleet.storage.output import stored_output

    names = _output_names(paths)
    problems: list[str] = []
    lines: list[str] = []
    shown = out.rstrip("/")
    with stored_output(out) as folder:
        check_overwriting(folder, names)
        detector = open_detector(model, device, tracking_uri)
        maps = None
        if objectness is not None:
            from yolofleet.cli.predict_objectness import ObjectnessFolder

            check_overwriting(objectness, map_names := [f"{Path(name).stem}.png" for name in names])
            maps = ObjectnessFolder.open(objectness, model, detector, tracking_uri, options["image_size"])
        make_folder(folder)
        unfinished = folder / PART_NAME
        write_new(unfinished, "")
        document = _empty_document(detector)
        batch_size = options["batch_size"]
        for start in range(0, len(paths), batch_size):
            readable = []
            for number in range(start, min(start + batch_size, len(paths))):
                try:
                    readable.append((number, read_image(paths[number])))
                except ImageReadError as error:
                    problems.append(str(error))
            detections = detector.predict([pixels for _, pixels in readable], **options)
            for (number, pixels), records in zip(readable, detections, strict=True):
                side = LONGEST_JPEG_SIDE if max(pixels.shape) > LONGEST_JPEG_SIDE else None
                (folder / names[number]).write_bytes(encode(draw_detections(pixels, records, side=side)))
                _add(document, paths[number], pixels.shape[:2], records)
                lines.append(f"{shown}/{names[number]}: {_summarize(records)}")
                if maps is not None:
                    lines.append(maps.draw(map_names[number], pixels))
        write_new(unfinished, json.dumps(document, indent=1) + "\n")
        unfinished.replace(folder / RECORDS_NAME)
    counts = f"{plural(len(document['annotations']), 'detection')} in {plural(len(document['images']), 'image')}"
    print_result(document, [*lines, f"{shown}/{RECORDS_NAME}: {counts}"], as_json=as_json)
    _raise_for(problems, len(paths))


def _raise_for(problems: list[str], num_images: int) -> None:
    """Name images that could not be read, after everything else is done."""
    if problems:
        named = and_more(problems, MOST_PROBLEMS, separator="\n  ")
        raise UserError(f"{len(problems)} of {plural(num_images, 'image')} cannot be read:\n  {named}")


def _output_names(paths: list[Path]) -> list[str]:
    """Return a file name for each image, no two the same on any file system."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name, count = f"{path.stem}.jpg", 1
        while name.casefold() in taken:
            count += 1
            name = f"{path.stem}_{count}.jpg"
        taken.add(name.casefold())
        names.append(name)
    return names


def _empty_document(detector: Detector) -> dict[str, list[dict[str, Any]]]:
    categories = [{"id": category_id, "name": name} for category_id, name in detector.classes]
    return {"images": [], "categories": categories, "annotations": []}


def _add(
    document: dict[str, list[dict[str, Any]]], path: Path, size: tuple[int, ...], records: list[dict[str, Any]]
) -> None:
    """Add an image and its detections to the COCO document."""
    image_id = len(document["images"]) + 1
    document["images"].append({"id": image_id, "file_name": str(path), "width": size[1], "height": size[0]})
    for record in records:
        document["annotations"].append(
            {
                "id": len(document["annotations"]) + 1,
                "image_id": image_id,
                "category_id": record["category_id"],
                "bbox": record["bbox"],
                "area": round(record["bbox"][2] * record["bbox"][3], 3),
                "iscrowd": 0,
                "score": record["score"],
            }
        )


def _summarize(records: list[dict[str, Any]]) -> str:
    """Return the counts of the classes, most frequent first: 2 circle, 1 square."""
    counts = Counter(record["category_name"] for record in records).most_common()
    return ", ".join(f"{count} {name}" for name, count in counts) or "nothing found"
