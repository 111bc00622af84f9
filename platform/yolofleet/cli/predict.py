"""``yolofleet predict``: find objects in pictures, draw them, and write them down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector

RECORDS_NAME = "detections.json"


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
            metavar="IMAGE", help="Pictures, or folders of them; with --workers also shards.", show_default=False
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder for the pictures and detections.json.")] = "predictions",
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
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that pass the network together.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    part_size: Annotated[int, typer.Option(min=1, help="With --workers: pictures that are committed together.")] = 256,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow server of a registered version.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")] = False,
) -> int:
    """Find objects in pictures: draws them into --out and writes detections.json, a COCO document."""
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
    from yolofleet.cli.predict_many import picture_source, predict_many, read_package
    from yolofleet.cluster.prediction_parts import PredictionPlan

    source = picture_source(images)
    package, card = read_package(model, tracking_uri)
    plan = PredictionPlan(
        weights_sha256=card.weights_sha256,
        data_digest=source.digest,
        num_pictures=len(source),
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
    from yolofleet.cli.picture_paths import picture_paths
    from yolofleet.evaluation.draw import draw_detections, encode
    from yolofleet.evaluation.pictures import PictureError, read_picture

    paths = list(picture_paths(images))
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
                readable.append((number, read_picture(paths[number])))
            except PictureError as error:
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
        print(f"{out / RECORDS_NAME}: {len(document['annotations'])} detections in {len(document['images'])} pictures")
    _raise_for(problems, len(paths))


def _raise_for(problems: list[str], num_pictures: int) -> None:
    """Name pictures that could not be read, after everything else is done."""
    from yolofleet.errors import UserError

    if problems:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        listed = "\n  ".join(problems[:5])
        raise UserError(f"{len(problems)} of {num_pictures} pictures cannot be read:\n  {listed}{more}")


def _output_names(paths: list[Path]) -> list[str]:
    """A file name for each picture, each another one."""
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
    from yolofleet.errors import UserError

    sources = {path.resolve() for path in paths}
    for name in names:
        if (out / name).resolve() in sources:
            raise UserError(f"--out {out} would overwrite the picture {out / name}: choose another folder")


def _make_folder(out: Path) -> None:
    from yolofleet.errors import UserError

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
    """Add a picture and what was found in it to the COCO document."""
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
    """What was found in a picture, most frequent first: 2 circle, 1 square."""
    counts: dict[str, int] = {}
    for record in records:
        counts[record["category_name"]] = counts.get(record["category_name"], 0) + 1
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{count} {name}" for name, count in ordered) or "nothing found"
