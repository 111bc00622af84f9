"""YOLO label files as a source: one text file an image, one object a line.

A line is ``class x y width height`` (centre and sides as shares of the image), ``class x1 y1 x2 y2 x3 y3 ...`` (a
polygon), or a box with key points after it. Shares are of the image as a viewer shows it. Class k gets category id k.
The label of an image has its name, in the same sub-folder, or in ``labels`` where the image is in ``images``.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.core.text import decode_text, plural
from yolofleet.data.check import ROUNDING_PIXELS
from yolofleet.data.class_names import ClassNames
from yolofleet.data.decode import DEFAULT_MAX_PIXELS, exif_orientation, image_size
from yolofleet.data.image_formats import ImageError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord, ObjectClass, Outlines, Segmentation, boxes_inside
from yolofleet.data.source_folder import is_image_name, is_litter
from yolofleet.data.sources import ImageStore, SourceDataset, SplitFiles, read_image_file
from yolofleet.data.yolo_lines import LabelLine, key_point_numbers, look_like_corners, parse_line, sound_lines
from yolofleet.data.yolo_names import find_class_names
from yolofleet.data.yolo_pairs import labels_alone, pair
from yolofleet.storage import ObjectInfo

LONGEST_LABEL_BYTES = 4 << 20
MOST_LABEL_LINES = 100_000
MOST_UNNAMED_CLASSES = 10_000
"""A label that holds no name can make a class only below this number: each class up to it gets a name and a count."""
OTHER_ENDINGS = (
    ".txt",
    ".yaml",
    ".yml",
    ".json",
    ".xml",
    ".csv",
    ".md",
    ".names",
    ".data",
    ".labels",
    ".cache",
    ".zip",
)


def read_yolo(
    labels: ImageStore, images: ImageStore, class_names: list[str] | None, problems: ProblemLog
) -> SourceDataset:
    """Read the labels of every image below ``images``; an image without a label file holds no objects.

    Args:
        labels: Folder of label files, in the same sub-folders as the images.
        images: Folder of images.
        class_names: Names by class; None takes those of a file of names with the labels (`find_class_names`), or else
            as many classes as the labels speak of, named by their numbers.
        problems: Where problems are counted.

    Raises:
        UserError: There is no image, or no class, or labels count classes from 1.
    """
    (source,) = read_yolo_splits([SplitFiles(labels, images, problems)], class_names)
    if class_names is None and "class_names_found" not in problems.counts:
        problems.add("class_names_missing", labels.url)
    return source


@dataclass(frozen=True)
class _Labels:
    """The label files of a split, before it is known whether their lines hold key points."""

    split: SplitFiles
    image_files: dict[str, ObjectInfo]
    files: dict[str, ObjectInfo]
    file_of: dict[str, str]
    """Keys of label files by image."""
    lines: dict[str, list[LabelLine]]
    """By image."""


def read_yolo_splits(splits: Sequence[SplitFiles], class_names: list[str] | None) -> list[SourceDataset]:
    """Read the splits of a dataset with the same classes; whether lines hold key points is decided over all of them.

    Raises:
        UserError: A split has no image, or there is no class, or labels count classes from 1.
    """
    parts = [_labels(split) for split in splits]
    every = [line for part in parts for lines in part.lines.values() for line in lines]
    highest = max((line.category for line in every), default=-1)
    for part in parts:
        class_names = class_names or find_class_names(part.split, frozenset(part.file_of.values()), highest)
    stated = class_names.key_points if isinstance(class_names, ClassNames) else None
    _refuse_classes_from_one(every, class_names, splits[0].annotations.url)
    numbers = stated or key_point_numbers(every, splits[0].annotations.url, splits[0].problems)
    usable = [
        {
            key: usable_lines(lines, numbers, class_names, part.split.problems, is_sure=stated is not None)
            for key, lines in part.lines.items()
        }
        for part in parts
    ]
    highest = max((line.category for found in usable for lines in found.values() for line in lines), default=-1)
    names = class_names or [str(index) for index in range(1 + highest)]
    if not names:
        raise UserError(f"{splits[0].annotations.url}: {_why_no_class(parts[0])}")
    return [_source(part, found, names) for part, found in zip(parts, usable, strict=True)]


def _refuse_classes_from_one(lines: list[LabelLine], names: list[str] | None, url: str) -> None:
    """Refuse labels whose numbers are one too large for the list of names: all but the last would be another class."""
    numbers = {line.category for line in lines}
    if names and len(names) in numbers and 0 not in numbers:
        where = next(line.where for line in lines if line.category == len(names))
        raise UserError(
            f"{url}: the classes count from 1: none is 0, and one is {len(names)}, too large for "
            f"{plural(len(names), 'name')} ({where}); YOLO counts from 0: subtract 1 in every label, or begin the list "
            "of names with the one of class 0"
        )


def _labels(split: SplitFiles) -> _Labels:
    image_files = _image_files(split.images, split.problems)
    if not image_files:
        cause = split.problems.reasons() or "name the folder of the images"
        raise UserError(f"{split.images.url}: no images here; {cause}")
    files = {entry.key: entry for entry in split.annotations.list() if not is_litter(entry.key)}
    file_of = pair(list(image_files), files, split.problems)
    _tell_labels_alone(split, files, image_files.keys(), file_of)
    lines = {
        key: _lines(split.annotations, files[file_of[key]], split.problems) for key in image_files if key in file_of
    }
    return _Labels(split, image_files, files, file_of, lines)


def _source(part: _Labels, usable: dict[str, list[LabelLine]], names: list[str]) -> SourceDataset:
    problems = part.split.problems
    if look_like_corners([line for lines in usable.values() for line in lines]):
        problems.add("boxes_look_like_corners", part.split.annotations.url)
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            problems.add("class_names_repeated", f"class {index}: {name!r}")
        seen.add(name)
    records = tuple(
        _record(number, entry, part.split.images, usable.get(key, []), problems)
        for number, (key, entry) in enumerate(part.image_files.items(), 1)
    )
    return SourceDataset(tuple(ObjectClass(index, name) for index, name in enumerate(names)), records)


def _image_files(images: ImageStore, problems: ProblemLog) -> dict[str, ObjectInfo]:
    found = {}
    for entry in images.list():
        if is_litter(entry.key):
            continue
        if is_image_name(entry.key):
            found[entry.key] = entry
        elif not entry.key.lower().endswith(OTHER_ENDINGS):
            problems.add("file_not_image", entry.key)
    return found


def _tell_labels_alone(
    split: SplitFiles, files: dict[str, ObjectInfo], images: Set[str], file_of: dict[str, str]
) -> None:
    """Count label files that belong to no image; where these are more than the others, names may differ by mistake.

    Then their lines are lost, unless most images have a label.
    """
    alone = labels_alone(files.keys(), images, frozenset(file_of.values()))
    are_lost = len(alone) > len(set(file_of.values())) and 2 * len(file_of) < len(images)
    for key in alone:
        split.problems.add("label_without_image", key)
        for line in _lines(split.annotations, files[key], ProblemLog()) if are_lost else []:
            split.problems.add("label_name_unmatched", line.where)


def _lines(labels: ImageStore, label: ObjectInfo, problems: ProblemLog) -> list[LabelLine]:
    if label.size_bytes > LONGEST_LABEL_BYTES:
        problems.add("label_file_too_large", f"{label.key}: {plural(label.size_bytes, 'byte')}")
        return []
    text = decode_text(labels.get(label.key), errors="replace")
    if (num_lines := len(text.splitlines())) > MOST_LABEL_LINES:
        problems.add("label_file_too_large", f"{label.key}: {plural(num_lines, 'line')}")
        return []
    return parse_label_lines(text, label.key, problems)


def parse_label_lines(text: str, name: str, problems: ProblemLog) -> list[LabelLine]:
    """Return the lines of a label file that hold a class and numbers; the others are counted."""
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            lines.append(parse_line(line, f"{name}: line {number}: {line[:60]!r}", problems))
    return [line for line in lines if line is not None]


def usable_lines(
    lines: list[LabelLine],
    numbers_of_points: int | None,
    class_names: list[str] | None,
    problems: ProblemLog,
    *,
    is_sure: bool = False,
) -> list[LabelLine]:
    """Return the sound lines (`sound_lines`) whose class is known; a line that is there twice is counted."""
    num_classes = MOST_UNNAMED_CLASSES if class_names is None else len(class_names)
    seen: set[bytes] = set()
    known = []
    for line in sound_lines(lines, numbers_of_points, problems, is_sure=is_sure):
        if not 0 <= line.category < num_classes:
            cure = "; name the classes with --classes" if class_names is None else ""
            problems.add("category_unknown", f"{line.where} (classes are 0 to {num_classes - 1}{cure})")
            continue
        line_bytes = np.array(
            [line.category, *line.shares]
        ).tobytes()  # as bytes, because floats can be made to collide
        if line_bytes in seen:
            problems.add("annotation_duplicate_box", line.where)
        seen.add(line_bytes)
        known.append(line)
    return known


def _why_no_class(part: _Labels) -> str:
    texts = [key for key in part.files if key.lower().endswith(".txt")]
    if not part.file_of and texts:
        return (
            f"no label file has the name of an image: labels are such as {texts[0]!r}, images such as "
            f"{next(iter(part.image_files))!r}; name the folders of labels and images that have the same sub-folders"
        )
    if reasons := part.split.problems.reasons():
        cure = "; name the classes with --classes" if "category_unknown" in part.split.problems.counts else ""
        return f"no class is named, and {reasons}{cure}"
    return "no label holds an object, so no class is named; name the classes with --classes"


def _record(
    image_id: int, entry: ObjectInfo, images: ImageStore, lines: list[LabelLine], problems: ProblemLog
) -> ImageRecord:
    upright = None
    try:
        data = read_image_file(images, entry.key, entry.size_bytes, DEFAULT_MAX_PIXELS)
        size = image_size(data, max_pixels=DEFAULT_MAX_PIXELS)
        if (orientation := exif_orientation(data)) != 1:
            upright = True
            size = size[::-1] if orientation >= 5 else size
    except ImageError:
        size, lines = (0, 0), []  # the damaged image is counted where it is decoded
    boxes, areas, polygons = [], [], []
    for line in lines:
        box, polygon = _in_pixels(line.shares, size)
        if polygon is not None and (clipped := _clipped(box, polygon, size)) is not None:
            problems.add("box_clipped", f"{entry.key}: {line.where}")
            box = clipped
        boxes.append(box)
        areas.append(box[2] * box[3])
        polygons.append(polygon)
    return ImageRecord(
        image_id,
        entry.key,
        *size,
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        np.asarray([line.category for line in lines], dtype=np.int64),
        np.zeros(len(lines), dtype=np.bool_),
        np.asarray(areas, dtype=np.float64),
        tuple(polygons),
        upright,
    )


def _in_pixels(shares: list[float], size: tuple[int, int]) -> tuple[list[float], Segmentation]:
    """Return x, y, width, height in pixels, and the polygon where the line holds one."""
    width, height = size
    if len(shares) == 4:
        x, y, across, down = shares
        return [(x - across / 2) * width, (y - down / 2) * height, across * width, down * height], None
    xs, ys = [share * width for share in shares[0::2]], [share * height for share in shares[1::2]]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], [polygon]


def _clipped(box: list[float], polygon: Segmentation, size: tuple[int, int]) -> list[float] | None:
    """Return the box around the visible part of a polygon that leaves its image; None where the box is left as it is.

    It is smaller than the clipped box where a corner alone is outside.
    """
    x, y, across, down = box
    if max(-x, -y, x + across - size[0], y + down - size[1]) <= ROUNDING_PIXELS:
        return None
    outlines = Outlines.of([polygon])
    (left, top, right, bottom) = boxes_inside(outlines.ends, outlines.owners, np.array([[0.0, 0.0, *size]]))[0].tolist()
    return [left, top, right - left, bottom - top] if right > left and bottom > top else None
