"""YOLO label files as a source: one text file an image, one object a line.

A line is ``class x y width height`` (centre and sides as shares of the image) or ``class x1 y1 x2 y2 x3 y3 ...`` (a
polygon). Shares are of the image as a viewer shows it. Class k gets category id k.
"""

from __future__ import annotations

import math
from array import array
from pathlib import PurePosixPath

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.data.check import upright_size
from yolofleet.data.decode import DEFAULT_MAX_PIXELS, ImageError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord, ObjectClass, Segmentation
from yolofleet.data.sources import IMAGE_EXTENSIONS, SourceDataset, read_image_file
from yolofleet.storage import Storage

ROUNDING_SHARE = 1e-6
LONGEST_LABEL_BYTES = 4 << 20
MOST_UNNAMED_CLASSES = 10_000
"""A label that holds no name can make a class only below this number: each class up to it gets a name and a count."""

Line = tuple[int, list[float]]


def read_yolo(labels: Storage, images: Storage, class_names: list[str] | None, problems: ProblemLog) -> SourceDataset:
    """Read the labels of every image below ``images``; an image without a label file holds no objects.

    Args:
        labels: Folder of label files, in the same sub-folders as the images.
        images: Folder of images.
        class_names: Names by class; None takes as many classes as the labels speak of, named by their numbers.
        problems: Where problems are counted.

    Raises:
        UserError: There is no image, or no class.
    """
    label_files = {
        str(PurePosixPath(entry.key).with_suffix("")): entry for entry in labels.list() if _is_text(entry.key)
    }
    found: list[tuple[str, tuple[int, int], list[Line]]] = []
    for entry in images.list():
        path = PurePosixPath(entry.key)
        if path.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS:
            continue
        try:
            data = read_image_file(images, entry.key, entry.size_bytes, DEFAULT_MAX_PIXELS)
            size = upright_size(data, DEFAULT_MAX_PIXELS)
        except ImageError:
            size = (0, 0)  # the damaged image is counted where it is decoded
        lines: list[Line] = []
        if (label := label_files.get(str(path.with_suffix("")))) is None:
            problems.add("label_file_missing", entry.key)
        elif label.size_bytes > LONGEST_LABEL_BYTES:
            problems.add("label_file_too_large", f"{label.key}: {label.size_bytes:,} bytes")
        else:
            text = labels.get(label.key).decode("utf-8-sig", errors="replace")
            lines = parse_label_lines(text, label.key, class_names, problems)
        found.append((entry.key, size, lines))
    if not found:
        raise UserError(f"{images.url}: no images here; {problems.reasons() or 'name the folder of the images'}")
    num_classes = len(class_names or ()) or 1 + max((line[0] for _, _, lines in found for line in lines), default=-1)
    if not num_classes:
        reasons = problems.reasons() or "no label holds one"
        raise UserError(f"{labels.url}: no class is named, and {reasons}; name the classes with --classes")
    names = class_names or [str(index) for index in range(num_classes)]
    records = tuple(_record(number, *entry) for number, entry in enumerate(found, start=1))
    return SourceDataset(tuple(ObjectClass(index, name) for index, name in enumerate(names)), records)


def parse_label_lines(text: str, name: str, class_names: list[str] | None, problems: ProblemLog) -> list[Line]:
    """Return (class, numbers) of every sound line; the others are counted."""
    sound: list[Line] = []
    seen: set[bytes] = set()
    num_classes = MOST_UNNAMED_CLASSES if class_names is None else len(class_names)
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{name}: line {number}: {line[:60]!r}"
        try:
            values = [float(field) for field in fields]
        except ValueError:
            problems.add("label_line_malformed", where)
            continue
        category, shares = values[0], values[1:]
        is_box, is_polygon = len(shares) == 4, len(shares) >= 6 and len(shares) % 2 == 0
        in_range = all(-ROUNDING_SHARE <= share <= 1 + ROUNDING_SHARE for share in shares)  # false for NaN
        if not (is_box or is_polygon) or not in_range or not math.isfinite(category) or category != int(category):
            problems.add("label_line_malformed", where)
        elif not 0 <= category < num_classes:
            cure = "; name the classes with --classes" if class_names is None else ""
            problems.add("category_unknown", f"{where} (classes are 0 to {num_classes - 1}{cure})")
        elif is_box and min(shares[2:]) <= 0:
            problems.add("box_zero_area", where)
        else:
            line_bytes = array("d", values).tobytes()  # hashed as bytes, because floats can be made to collide
            if line_bytes in seen:
                problems.add("annotation_duplicate_box", where)
            seen.add(line_bytes)
            sound.append((int(category), shares))
    return sound


def _record(image_id: int, key: str, size: tuple[int, int], lines: list[Line]) -> ImageRecord:
    if size == (0, 0):
        lines = []
    boxes, areas, polygons = [], [], []
    for _, shares in lines:
        box, polygon = _in_pixels(shares, size)
        boxes.append(box)
        areas.append(box[2] * box[3])
        polygons.append(polygon)
    return ImageRecord(
        image_id,
        key,
        *size,
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        np.asarray([category for category, _ in lines], dtype=np.int64),
        np.zeros(len(lines), dtype=np.bool_),
        np.asarray(areas, dtype=np.float64),
        tuple(polygons),
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


def _is_text(key: str) -> bool:
    return key.lower().endswith(".txt") and PurePosixPath(key).stem not in ("classes", "labels", "train", "val", "test")
