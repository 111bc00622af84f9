"""Exports as tools write them, drawn small: images of three coloured rectangles with their true boxes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from yolofleet.data.class_names import read_class_names
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.data.sources import SourceDataset

NAMES = ("red", "green", "blue")
COLOURS = ((220, 30, 30), (30, 160, 40), (30, 60, 220))
WIDTH, HEIGHT = 160, 120
Box = list[float]


def draw(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> tuple[Image.Image, list[Box]]:
    """An image with its boxes, one of each class."""
    generator = np.random.default_rng(number)
    pixels = np.full((size[1], size[0], 3), 200, np.uint8)
    boxes = []
    for colour in COLOURS:
        width, height = int(generator.integers(20, 50)), int(generator.integers(20, 40))
        x, y = int(generator.integers(0, size[0] - width)), int(generator.integers(0, size[1] - height))
        pixels[y : y + height, x : x + width] = colour
        boxes.append([float(x), float(y), float(width), float(height)])
    return Image.fromarray(pixels), boxes


def save_images(folder: Path, *names: str) -> list[list[Box]]:
    """Images of these names, and the boxes of each."""
    every = []
    for number, name in enumerate(names):
        image, boxes = draw(number)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=92)
        (folder / name).write_bytes(data.getvalue())
        every.append(boxes)
    return every


def coco(every: list[list[Box]], names: list[str]) -> dict[str, Any]:
    """A COCO document of images in this order."""
    document: dict[str, Any] = {
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} for number, name in enumerate(names, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)],
        "annotations": [],
    }
    for number, boxes in enumerate(every, 1):
        for category, box in enumerate(boxes, 1):
            entry = {"image_id": number, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            document["annotations"].append({"id": len(document["annotations"]) + 1, **entry})
    return document


def yolo_line(category: object, box: Box, *more: object) -> str:
    x, y, width, height = box
    shares = [(x + width / 2) / WIDTH, (y + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT]
    return " ".join(map(str, (category, *shares, *more)))


def save_labels(folder: Path, every: dict[str, list[Box]]) -> None:
    for stem, boxes in every.items():
        path = folder / f"{stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(yolo_line(category, box) for category, box in enumerate(boxes)) + "\n")


def voc(boxes: list[Box], filename: str) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x + 1:.12g}</xmin><ymin>{y + 1:.12g}</ymin>"
        f"<xmax>{x + w:.12g}</xmax><ymax>{y + h:.12g}</ymax></bndbox></object>"
        for name, (x, y, w, h) in zip(NAMES, boxes, strict=False)
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    return f"<annotation><filename>{filename}</filename>{size}{objects}</annotation>"


def read(
    annotations: Path, images: Path | str | None, classes: Path | None = None
) -> tuple[SourceDataset, dict[str, int]]:
    problems = ProblemLog()
    names = None if classes is None else read_class_names(str(classes))
    where = None if images is None else str(images)
    source, _ = read_source(str(annotations), where, problems, class_names=names)
    return source, problems.counts


def boxes_by_name(source: SourceDataset) -> dict[str, list[Box]]:
    return {record.file_name: record.boxes.round(6).tolist() for record in source.records}


def built(out: Path) -> dict[str, list[Box]]:
    """The boxes of a built dataset, by the names of the images."""
    return {record.file_name: record.boxes.round(6).tolist() for _, record in ShardDataset(out).records()}


def write_json(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path
