"""The exports of ten tools in their own layouts, drawn small: three images with three boxes each."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.exports import HEIGHT, NAMES, WIDTH, Box, coco, draw, save_images, save_labels, voc, write_json

NUM_IMAGES = 3
STEMS = tuple(f"photo_{number}" for number in range(NUM_IMAGES))
FILES = [f"{stem}.jpg" for stem in STEMS]


def _polygon(box: Box) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _document(folder: Path, names: list[str]) -> dict[str, Any]:
    return coco(save_images(folder, *names), names)


def write_cvat(folder: Path) -> None:
    """ "COCO 1.0" of CVAT: one zip, rotated rectangles beside plain ones."""
    document = _document(folder / "images" / "default", FILES)
    for entry in document["annotations"]:
        entry |= {"segmentation": [], "attributes": {"occluded": False, "rotation": 0.0}}
    with zipfile.ZipFile(folder / "cvat.zip", "w") as target:
        target.writestr("annotations/instances_default.json", json.dumps(document))
        for name in FILES:
            target.write(folder / "images" / "default" / name, f"images/default/{name}")
    shutil.rmtree(folder / "images")


def write_label_studio(folder: Path) -> None:
    document = _document(folder / "images", FILES)
    for entry in document["images"]:
        entry["file_name"] = f"..\\..\\label-studio\\media\\upload\\4\\{entry['file_name']}"
    write_json(folder / "result.json", document)


def write_roboflow(folder: Path) -> None:
    for split, names in (("train", FILES[:2]), ("valid", FILES[2:])):
        document = _document(folder / split, names)
        document["categories"] = [
            {"id": 0, "name": "shapes", "supercategory": "none"},
            *({**entry, "supercategory": "shapes"} for entry in document["categories"]),
        ]
        write_json(folder / split / "_annotations.coco.json", document)
    (folder / "README.roboflow.txt").write_text("shapes\n")


def write_labelme(folder: Path) -> None:
    """labelme2coco: images beside the file in JPEGImages, outlines of which each has its box."""
    document = _document(folder / "JPEGImages", FILES)
    for entry in document["images"]:
        entry["file_name"] = f"JPEGImages/{entry['file_name']}"
    for entry in document["annotations"]:
        entry["segmentation"] = [_polygon(entry["bbox"])]
    write_json(folder / "annotations.json", document)


def write_via(folder: Path) -> None:
    """The COCO export of the VGG Image Annotator: ids as text, flat outlines."""
    document = _document(folder / "images", FILES)
    for entry in document["annotations"]:
        entry |= {"segmentation": _polygon(entry["bbox"]), "id": str(entry["id"]), "image_id": str(entry["image_id"])}
    write_json(folder / "via_project_coco.json", document)


def write_lvis(folder: Path) -> None:
    document = _document(folder / "train2017", FILES)
    for entry in document["images"]:
        entry["coco_url"] = f"http://images.cocodataset.org/train2017/{entry.pop('file_name')}"
        entry |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for entry in document["annotations"]:
        entry |= {"segmentation": [_polygon(entry["bbox"])]}
        del entry["iscrowd"]
    write_json(folder / "lvis_v1_train.json", document)


def write_datumaro(folder: Path) -> None:
    document = _document(folder / "images" / "train", FILES)
    for entry in document["annotations"]:
        entry |= {"segmentation": [_polygon(entry["bbox"])], "attributes": {"occluded": False}}
        entry["bbox"] = [0.0, 0.0, 0.0, 0.0]
    write_json(folder / "annotations" / "instances_train.json", document)


def write_fiftyone(folder: Path) -> None:
    document = _document(folder / "data", FILES)
    for entry in document["categories"]:
        entry["supercategory"] = None
    for entry in document["images"]:
        entry |= {"license": None, "coco_url": None}
    write_json(folder / "labels.json", document)


def write_open_images(folder: Path) -> None:
    """Open Images as COCO: ids are hashes, names have no ending."""
    document = _document(folder / "images", FILES)
    for entry in document["images"]:
        entry |= {"file_name": entry["file_name"].removesuffix(".jpg"), "id": f"{entry['id']:016x}"}
    for entry in document["annotations"]:
        entry["image_id"] = f"{entry['image_id']:016x}"
    write_json(folder / "open_images.json", document)


def write_ultralytics(folder: Path) -> None:
    for split, stems in (("train", STEMS[:2]), ("val", STEMS[2:])):
        every = save_images(folder / "images" / split, *(f"{stem}.jpg" for stem in stems))
        save_labels(folder / "labels" / split, dict(zip(stems, every, strict=True)))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    (folder / "data.yaml").write_text(
        f"path: /content/datasets/shapes\ntrain: images/train\nval: images/val\nnames:\n{names}"
    )


def write_voc(folder: Path) -> None:
    for stem, boxes in zip(STEMS, save_images(folder / "JPEGImages", *FILES), strict=True):
        (folder / "Annotations").mkdir(parents=True, exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").write_text(voc(boxes, f"{stem}.jpg"))


EXPORTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "cvat": (write_cvat, "cvat.zip", "-"),
    "label-studio": (write_label_studio, "result.json", "images"),
    "roboflow": (write_roboflow, "train/_annotations.coco.json", "train"),
    "labelme": (write_labelme, "annotations.json", "."),
    "via": (write_via, "via_project_coco.json", "images"),
    "lvis": (write_lvis, "lvis_v1_train.json", "train2017"),
    "datumaro": (write_datumaro, "annotations/instances_train.json", "images/train"),
    "fiftyone": (write_fiftyone, "labels.json", "data"),
    "open-images": (write_open_images, "open_images.json", "images"),
    "ultralytics": (write_ultralytics, "data.yaml", "-"),
    "voc": (write_voc, "Annotations", "JPEGImages"),
}
"""Tool -> what writes its export, and what ``data shard`` is given of it."""


def write_exports(folder: Path) -> None:
    """Write the export of every tool into a folder of its name."""
    for tool, (write, _, _) in EXPORTS.items():
        (folder / tool).mkdir(parents=True)
        write(folder / tool)


def true_boxes(num_images: int = NUM_IMAGES) -> list[list[Box]]:
    """The boxes of each image, as it was drawn."""
    return [draw(number, (WIDTH, HEIGHT))[1] for number in range(num_images)]
