"""Exports of annotation tools with their splits, in folders as the tools write them, with images drawn here.

Every function writes the same boxes into a folder, split as the tool would split them, so that whatever is read back
can be compared. `tool_exports` has the COCO files of the tools.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "bird")
WIDTH, HEIGHT = 96, 64


@dataclass(frozen=True)
class Drawn:
    """One image: its name without an ending, and (class, x, y, width, height) of its objects in pixels."""

    name: str
    boxes: tuple[tuple[int, int, int, int, int], ...]

    def save(self, path: Path) -> None:
        """Draw it: a grey image with a coloured rectangle for each object."""
        pixels = np.full((HEIGHT, WIDTH, 3), 96 + len(self.name), dtype=np.uint8)
        for number, x, y, width, height in self.boxes:
            pixels[y : y + height, x : x + width] = np.eye(3, dtype=np.uint8)[number] * 255
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)


def draw(
    count: int = 12, seed: int = 0, names: Callable[[int], str] = lambda number: f"photo_{number:03}"
) -> list[Drawn]:
    """Images with one to three boxes each, at whole even pixels."""
    generator = np.random.default_rng(seed)
    drawn = []
    for number in range(count):
        boxes = []
        for index in range(1 + number % 3):
            width, height = (int(side) for side in 2 * generator.integers(6, 14, 2))
            x, y = (
                2 * int(generator.integers(0, (WIDTH - width) // 2)),
                2 * int(generator.integers(0, (HEIGHT - height) // 2)),
            )
            boxes.append(((number + index) % 3, x, y, width, height))
        drawn.append(Drawn(names(number), tuple(boxes)))
    return drawn


def halves(images: list[Drawn]) -> dict[str, list[Drawn]]:
    """Two thirds for training, the others for validation."""
    return {"train": images[: 2 * len(images) // 3], "val": images[2 * len(images) // 3 :]}


def coco(images: list[Drawn], file_name: Callable[[Drawn], str]) -> dict[str, Any]:
    """A COCO document."""
    boxes = [(number, box) for number, image in enumerate(images, start=1) for box in image.boxes]
    return {
        "images": [
            {"id": number, "file_name": file_name(image), "width": WIDTH, "height": HEIGHT}
            for number, image in enumerate(images, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)],
        "annotations": [
            {"id": identity, "image_id": number, "category_id": 1 + box[0], "bbox": list(map(float, box[1:]))}
            | {"area": float(box[3] * box[4]), "segmentation": [], "iscrowd": 0}
            for identity, (number, box) in enumerate(boxes, start=1)
        ],
    }


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def yolo_lines(image: Drawn) -> list[str]:
    return [
        f"{number} {(x + width / 2) / WIDTH} {(y + height / 2) / HEIGHT} {width / WIDTH} {height / HEIGHT}"
        for number, x, y, width, height in image.boxes
    ]


def voc_xml(image: Drawn, file_name: str) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[number]}</name><truncated>0</truncated><difficult>0</difficult><bndbox><xmin>{x + 1}"
        f"</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>"
        for number, x, y, width, height in image.boxes
    )
    return (
        f"<annotation><folder>x</folder><filename>{file_name}</filename><size><width>{WIDTH}</width><height>{HEIGHT}"
        f"</height><depth>3</depth></size><segmented>0</segmented>{objects}</annotation>"
    )


def cvat_yolo(folder: Path, images: list[Drawn]) -> None:
    """CVAT, YOLO 1.1 of a project with subsets: lists of paths below ``data/``, labels beside the images."""
    write_lines(
        folder / "obj.data",
        [
            "classes = 3",
            "train = data/Train.txt",
            "valid = data/Validation.txt",
            "names = data/obj.names",
            "backup = backup/",
        ],
    )
    write_lines(folder / "obj.names", CLASSES)
    for subset, part in zip(("Train", "Validation"), halves(images).values(), strict=True):
        write_lines(folder / f"{subset}.txt", [f"data/obj_{subset}_data/{image.name}.jpg" for image in part])
        for image in part:
            image.save(folder / f"obj_{subset}_data/{image.name}.jpg")
            write_lines(folder / f"obj_{subset}_data/{image.name}.txt", yolo_lines(image))


def cvat_voc(folder: Path, images: list[Drawn]) -> None:
    """CVAT, Pascal VOC 1.1 of a task."""
    write_lines(folder / "ImageSets/Main/default.txt", [image.name for image in images])
    write_lines(
        folder / "labelmap.txt", ["# label:color_rgb:parts:actions", *(f"{name}:128,0,0::" for name in CLASSES)]
    )
    for image in images:
        image.save(folder / f"JPEGImages/{image.name}.jpg")
        write_lines(folder / f"Annotations/{image.name}.xml", [voc_xml(image, f"{image.name}.jpg")])


def label_studio_yolo(folder: Path, images: list[Drawn]) -> None:
    """Label Studio, YOLO with images."""
    write_lines(folder / "classes.txt", CLASSES)
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    write_json(folder / "notes.json", {"categories": categories, "info": {"contributor": "Label Studio"}})
    for image in images:
        image.save(folder / f"images/5f3a-{image.name}.jpg")
        write_lines(folder / f"labels/5f3a-{image.name}.txt", yolo_lines(image))


def _roboflow_name(image: Drawn) -> str:
    return f"{image.name}_jpg.rf.{image.name.encode().hex():0>32.32}"


def roboflow_yolo(folder: Path, images: list[Drawn]) -> None:
    """Roboflow, YOLOv7: paths of data.yaml lead out of the folder that they mean."""
    write_lines(
        folder / "data.yaml",
        [
            *("train: ../train/images", "val: ../valid/images", "test: ../test/images", "", "nc: 3"),
            *(f"names: {list(CLASSES)}", "", "roboflow:", "  workspace: zoo", "  version: 1"),
        ],
    )
    for split, part in zip(("train", "valid"), halves(images).values(), strict=True):
        for image in part:
            image.save(folder / split / f"images/{_roboflow_name(image)}.jpg")
            write_lines(folder / split / f"labels/{_roboflow_name(image)}.txt", yolo_lines(image))


def datumaro_coco(folder: Path, images: list[Drawn]) -> None:
    """Datumaro, COCO: annotations and images of both splits in folders of their own, with equal names."""
    for split, part in halves(images).items():
        write_json(folder / f"annotations/instances_{split}.json", coco(part, lambda image: f"{image.name}.jpg"))
        for image in part:
            image.save(folder / f"images/{split}/{image.name}.jpg")


def fiftyone_yolo(folder: Path, images: list[Drawn]) -> None:
    """FiftyOne, YOLOv5Dataset: paths of another computer in dataset.yaml."""
    names = [f"  {number}: {name}" for number, name in enumerate(CLASSES)]
    write_lines(
        folder / "dataset.yaml",
        ["names:", *names, "path: /home/somebody/export", "train: ./images/train/", "val: ./images/val/"],
    )
    for split, part in halves(images).items():
        for image in part:
            image.save(folder / f"images/{split}/{image.name}.jpg")
            write_lines(folder / f"labels/{split}/{image.name}.txt", yolo_lines(image))


def plain_yolo(folder: Path, images: list[Drawn]) -> None:
    """YOLO labels as most tutorials have them: images/train, labels/train, and no file that says so."""
    write_lines(folder / "classes.txt", CLASSES)
    for split, part in halves(images).items():
        for image in part:
            image.save(folder / f"images/{split}/{image.name}.png")
            write_lines(folder / f"labels/{split}/{image.name}.txt", yolo_lines(image))


def label_img_yolo(folder: Path, images: list[Drawn]) -> None:
    """LabelImg, YOLO: everything in one folder."""
    write_lines(folder / "classes.txt", CLASSES)
    for image in images:
        image.save(folder / f"{image.name}.jpg")
        write_lines(folder / f"{image.name}.txt", yolo_lines(image))


def voc_devkit(folder: Path, images: list[Drawn]) -> None:
    """Pascal VOC as it is distributed, one folder below."""
    root = folder / "VOC2007"
    for split, part in {**halves(images), "trainval": images}.items():
        write_lines(root / f"ImageSets/Main/{split}.txt", [image.name for image in part])
        write_lines(root / f"ImageSets/Main/cat_{split}.txt", [f"{image.name} -1" for image in part])
    for image in images:
        image.save(root / f"JPEGImages/{image.name}.jpg")
        write_lines(root / f"Annotations/{image.name}.xml", [voc_xml(image, f"{image.name}.jpg")])


def roboflow_voc(folder: Path, images: list[Drawn]) -> None:
    """Roboflow, Pascal VOC: XML files beside the images of each split."""
    for split, part in zip(("train", "valid"), halves(images).values(), strict=True):
        for image in part:
            image.save(folder / split / f"{_roboflow_name(image)}.jpg")
            write_lines(
                folder / split / f"{_roboflow_name(image)}.xml", [voc_xml(image, f"{_roboflow_name(image)}.jpg")]
            )


FOLDERS: dict[str, Callable[[Path, list[Drawn]], None]] = {
    "CVAT as YOLO": cvat_yolo,
    "CVAT as VOC": cvat_voc,
    "Label Studio as YOLO": label_studio_yolo,
    "Roboflow as YOLO": roboflow_yolo,
    "Roboflow as VOC": roboflow_voc,
    "Datumaro as COCO": datumaro_coco,
    "FiftyOne as YOLO": fiftyone_yolo,
    "YOLO": plain_yolo,
    "LabelImg": label_img_yolo,
    "VOC": voc_devkit,
}
"""What writes the export of each tool."""
