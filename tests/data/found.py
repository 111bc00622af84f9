"""What is found in a folder, as the tests compare it."""

from __future__ import annotations

from pathlib import Path

from data.folders import CLASSES, Drawn
from yolofleet.data.find_layout import find_layout
from yolofleet.data.layout import Layout
from yolofleet.data.layout_reader import SplitSource, read_layout
from yolofleet.data.problems import ProblemLog
from yolofleet.data.source_folder import open_source

Boxes = dict[str, list[tuple[str, float, float, float, float]]]


def find(folder: Path, named: str | None = None) -> tuple[Layout, dict[str, SplitSource], ProblemLog]:
    problems = ProblemLog()
    storage = open_source(str(folder), problems, follow_links=False)
    sizes = {entry.key: entry.size_bytes for entry in storage.list()}
    layout = find_layout(list(sizes), storage.get, named, str(folder))
    return layout, read_layout(layout, storage, sizes, problems), problems


def look(folder: Path) -> Layout:
    keys = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return find_layout(keys, lambda key: (folder / key).read_bytes())


def boxes_of(split: SplitSource) -> Boxes:
    """Named boxes by the part of the file's name that the image was drawn with."""
    names = [entry.name for entry in split.source.classes]
    found: Boxes = {}
    for record in split.source.records:
        stem = record.file_name.rpartition("/")[2].partition(".")[0].removesuffix("_jpg")
        key = "photo_" + stem.rpartition("photo_")[2]
        rows = zip(record.classes, record.boxes.round(6).tolist(), strict=True)
        found[key] = sorted((names[number], *box) for number, box in rows)
    return found


def truth(images: list[Drawn]) -> Boxes:
    return {image.name: sorted((CLASSES[box[0]], *map(float, box[1:])) for box in image.boxes) for image in images}
