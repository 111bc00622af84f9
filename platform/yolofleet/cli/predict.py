"""``yolofleet predict``: find objects in images, draw them, and write them down.

``yolofleet predict --workers``: find objects in very many images, in parts, on Ray.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolofleet.cluster.prediction_parts import ImageSource, PredictionPlan
    from yolofleet.evaluation.detector_package import DetectorCard
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector


def predict_many(
    package: Mapping[str, bytes],
    classes: list[tuple[int, str]],
    source: ImageSource,
    out: str,
    plan: PredictionPlan,
    *,
    workers: int,
    device: str,
    batch_size: int,
    json_output: bool,
) -> list[str]:
    """Predict what is missing, put everything together and say what was made; returns what could not be read.

    Raises:
        UserError: the folder holds predictions of something else, or the cluster cannot hold so many workers.
        WorkError: workers died again and again.
    """
    from yolofleet.cli.progress import counting
    from yolofleet.cluster.batch_prediction import predict_parts
    from yolofleet.cluster.prediction_parts import DOCUMENT_KEY, RESULTS_KEY, merge_parts, missing_parts
    from yolofleet.storage import open_storage

    storage = open_storage(out)
    missing = missing_parts(storage, plan)
    if len(missing) < plan.num_parts:
        print(f"{plan.num_parts - len(missing)} of {plan.num_parts} parts are there already", file=sys.stderr)
    if missing:
        with counting("images", sum(len(plan.images(part)) for part in missing)) as advance:
            predict_parts(
                package,
                source,
                plan,
                storage.url,
                missing,
                workers=workers,
                device=device,
                batch_size=batch_size,
                on_part=advance,
            )
    counts, problems = merge_parts(storage, plan, classes)
    if json_output:
        print(json.dumps({"detections": f"{out}/{DOCUMENT_KEY}", "results": f"{out}/{RESULTS_KEY}", **counts}))
    else:
        print(f"{out}/{DOCUMENT_KEY}: {counts['annotations']} detections in {counts['images']} images")
        print(f"{out}/{RESULTS_KEY}: the same as a COCO result file")
    return problems


def image_source(images: list[str]) -> ImageSource:
    """Return the images that the arguments name: a sharded dataset, or files and folders of them."""
    from yolofleet.cluster.prediction_parts import FileImages, ShardImages
    from yolofleet.core.file_names import MANIFEST_NAME
    from yolofleet.storage import open_storage

    if len(images) == 1 and ("://" in images[0] or open_storage(images[0]).exists(MANIFEST_NAME)):
        return ShardImages(images[0])
    return FileImages(list(image_paths([Path(image) for image in images])))


def read_package(model: str, tracking_uri: str | None) -> tuple[dict[str, bytes], DetectorCard]:
    """Return what a worker needs of a detector package, to travel to other hosts, and its description.

    Raises:
        UserError: There is no such model, or it is damaged.
    """
    from yolofleet.cli.model_argument import package_folder
    from yolofleet.cluster.batch_prediction import PACKAGE_FILES
    from yolofleet.evaluation.detector import Detector

    with package_folder(model, tracking_uri) as folder:
        card = Detector.load(folder).card
        return {name: (folder / name).read_bytes() for name in PACKAGE_FILES if (folder / name).is_file()}, card


RECORDS_NAME = "detections.json"
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


def image_paths(images: list[Path]) -> Iterator[Path]:
    """Yield the images that the arguments name; of a folder, the files in it with the suffix of an image."""
    from yolofleet.core.errors import UserError
    from yolofleet.core.file_names import MANIFEST_NAME

    for path in images:
        if (path / MANIFEST_NAME).is_file():
            raise UserError(f"{path} is a sharded dataset: predict it alone and with --workers N")
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UserError(f"{path} is a folder without images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            yield from inside
        elif not path.exists():
            raise UserError(f"there is no image {path}")
        else:
            yield path


def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run directory, a detector package, or models:/NAME@ALIAS.", show_default=False
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE", help="Images, or folders of them; with --workers also shards.", show_default=False
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder for the images and detections.json.")] = "predictions",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Predict with so many workers of Ray, without drawing; the same command goes on."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest score shown; as the model says.")
    ] = None,
    iou: Annotated[
        float | None, typer.Option(min=0, max=1, help="Overlap above which the worse box goes; as the model says.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Long side of the input; as the model says.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that pass the network together.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    part_size: Annotated[int, typer.Option(min=1, help="With --workers: images that are committed together.")] = 256,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server of a registered version.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")] = False,
) -> int:
    """Find objects in images: draws them into --out and writes detections.json, a COCO document."""
    if workers is None:
        _predict_here(
            model,
            [Path(image) for image in images],
            Path(out),
            confidence=confidence,
            iou=iou,
            image_size=image_size,
            batch_size=batch_size,
            device=device,
            tracking_uri=tracking_uri,
            json_output=json_output,
        )
        return 0
    from yolofleet.cluster.prediction_parts import PredictionPlan

    source = image_source(images)
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
    problems = predict_many(
        package,
        [(entry.id, entry.name) for entry in card.classes],
        source,
        out,
        plan,
        workers=workers,
        device=device,
        batch_size=batch_size,
        json_output=json_output,
    )
    _raise_for(problems, len(source))
    return 0


def _predict_here(
    model: str,
    images: list[Path],
    out: Path,
    *,
    confidence: float | None,
    iou: float | None,
    image_size: int | None,
    batch_size: int,
    device: str,
    tracking_uri: str | None,
    json_output: bool,
) -> None:
    """Predict in this process and draw what was found."""
    from yolofleet.cli.model_argument import open_detector
    from yolofleet.data.draw import draw_detections, encode
    from yolofleet.evaluation.images import ImageReadError, read_image

    paths = list(image_paths(images))
    names = _output_names(paths)
    _check_overwriting(out, paths, names)
    detector = open_detector(model, device, tracking_uri)
    _make_folder(out)
    problems: list[str] = []
    document = _empty_document(detector)
    for start in range(0, len(paths), batch_size):
        readable = []
        for number in range(start, min(start + batch_size, len(paths))):
            try:
                readable.append((number, read_image(paths[number])))
            except ImageReadError as error:
                problems.append(str(error))
        found = detector.predict(
            [pixels for _, pixels in readable],
            confidence=confidence,
            iou=iou,
            image_size=image_size,
            batch_size=batch_size,
        )
        for (number, pixels), records in zip(readable, found, strict=True):
            (out / names[number]).write_bytes(encode(draw_detections(pixels, records)))
            _add(document, paths[number], pixels.shape[:2], records)
            if not json_output:
                print(f"{out / names[number]}: {_summary(records)}")
    text = json.dumps(document, indent=1)
    (out / RECORDS_NAME).write_text(text + "\n", encoding="utf-8")
    if json_output:
        print(text)
    else:
        print(f"{out / RECORDS_NAME}: {len(document['annotations'])} detections in {len(document['images'])} images")
    _raise_for(problems, len(paths))


def _raise_for(problems: list[str], num_images: int) -> None:
    """Name images that could not be read, after everything else is done."""
    from yolofleet.core.errors import UserError

    if problems:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        listed = "\n  ".join(problems[:5])
        raise UserError(f"{len(problems)} of {num_images} images cannot be read:\n  {listed}{more}")


def _output_names(paths: list[Path]) -> list[str]:
    """A file name for each image, each another one."""
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


def _check_overwriting(out: Path, paths: list[Path], names: list[str]) -> None:
    from yolofleet.core.errors import UserError

    sources = {path.resolve() for path in paths}
    for name in names:
        if (out / name).resolve() in sources:
            raise UserError(f"--out {out} would overwrite the image {out / name}: choose another folder")


def _make_folder(out: Path) -> None:
    from yolofleet.core.errors import UserError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder --out {out}: {error.strerror or error}") from error


def _empty_document(detector: Detector) -> dict[str, list[dict[str, Any]]]:
    categories = [{"id": category_id, "name": name} for category_id, name in detector.classes]
    return {"images": [], "categories": categories, "annotations": []}


def _add(
    document: dict[str, list[dict[str, Any]]], path: Path, size: tuple[int, ...], records: list[dict[str, Any]]
) -> None:
    """Add an image and what was found in it to the COCO document."""
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


def _summary(records: list[dict[str, Any]]) -> str:
    """What was found in an image, most frequent first: 2 circle, 1 square."""
    counts: dict[str, int] = {}
    for record in records:
        counts[record["category_name"]] = counts.get(record["category_name"], 0) + 1
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{count} {name}" for name, count in ordered) or "nothing found"
