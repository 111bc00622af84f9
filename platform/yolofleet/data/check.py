"""Checks of a dataset that need its image files: every image is decoded and every box compared with it.

A build checks each image in the same way. The file decides about its size; the annotations decide about which way up it
is (see ``decode_image``).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.box_checks import THINNEST_BOX_PIXELS
from yolofleet.data.build_plan import image_key
from yolofleet.data.decode import (
    DEFAULT_MAX_PIXELS,
    ImageError,
    decode_image,
    exif_orientation,
    image_extension,
    image_size,
)
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord, ObjectClass
from yolofleet.data.sources import ImageStore, SourceDataset, read_image_file
from yolofleet.storage import ObjectNotFoundError

ROUNDING_PIXELS = 1.0
"""A box may reach so far out of its image before it is clipped. Annotation tools round; a box that is only rounded
keeps its exact numbers, so that AP over our copy equals AP over the source to the last digit."""
EXTREME_ASPECT = 50
MOST_SUSPICIOUS_KEPT = 200
_EXTENSIONS_OF = {"jpg": ("jpg", "jpeg", "jpe", "jfif"), "tiff": ("tif", "tiff")}


@dataclass(frozen=True)
class CheckedImage:
    """A decoded image, and its record with the image's size and the boxes clipped to it."""

    record: ImageRecord
    extension: str
    pixels: NDArray[np.uint8]


def check_image(
    record: ImageRecord, data: bytes, problems: ProblemLog, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> CheckedImage | None:
    """Decode an image and fit its record to it; None, and a counted problem, where it cannot be used."""
    try:
        annotated = (record.width, record.height) if record.width else upright_size(data, max_pixels)
        pixels = decode_image(data, max_pixels=max_pixels, annotated_size=annotated)
        extension = image_extension(data)
    except ImageError as error:
        problems.add(error.reason, f"{record.file_name}: {error}")
        return None
    height, width = pixels.shape[:2]
    _note_oddities(record, data, extension, (width, height), problems)
    return CheckedImage(_fit_boxes(replace(record, width=width, height=height), problems), extension, pixels)


def upright_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the (width, height) that a viewer shows: EXIF orientations 5 to 8 swap the sides.

    Raises:
        ImageError: No image, a damaged header, or more pixels than allowed.
    """
    width, height = image_size(data, max_pixels=max_pixels)
    return (height, width) if exif_orientation(data) >= 5 else (width, height)


def _note_oddities(
    record: ImageRecord, data: bytes, extension: str, size: tuple[int, int], problems: ProblemLog
) -> None:
    name, orientation = record.file_name, exif_orientation(data)
    if record.width and (record.width, record.height) != size:
        seen = f"{name}: {record.width}x{record.height} in the annotations, {size[0]}x{size[1]} in the file"
        problems.add("image_size_wrong", seen)
    elif orientation != 1:
        turned = image_size(data, max_pixels=size[0] * size[1]) != size
        problems.add("image_turned" if turned else "image_exif_ignored", f"{name}: EXIF orientation {orientation}")
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    if suffix not in _EXTENSIONS_OF.get(extension, (extension,)):
        problems.add("image_extension_wrong", f"{name}: the content is {extension}")
    if extension == "gif":
        problems.add("image_animated", name)
    if max(size) > EXTREME_ASPECT * min(size):
        problems.add("image_extreme_shape", f"{name}: {size[0]}x{size[1]}")


def _fit_boxes(record: ImageRecord, problems: ProblemLog) -> ImageRecord:
    """Clip boxes that reach out of the image by more than rounding; leave out those with nothing inside."""
    if not len(record.boxes):
        return record
    size = np.array([record.width, record.height], dtype=np.float64)
    low, high = record.boxes[:, :2], record.boxes[:, :2] + record.boxes[:, 2:]  # (n, 2) corners
    overhang = np.maximum(-low, high - size).max(axis=1)
    clipped_low, clipped_high = np.clip(low, 0, size), np.clip(high, 0, size)
    inside = np.all(clipped_high - clipped_low >= THINNEST_BOX_PIXELS, axis=1)
    clip = inside & (overhang > ROUNDING_PIXELS)
    boxes, areas = record.boxes.copy(), record.areas.copy()
    boxes[clip] = np.concatenate([clipped_low, clipped_high - clipped_low], axis=1)[clip]
    areas[clip] = np.minimum(areas[clip], boxes[clip, 2] * boxes[clip, 3])
    for index in np.flatnonzero(~inside | clip):
        where = f"{record.file_name}: box {record.boxes[index].tolist()} in {record.width}x{record.height}"
        problems.add("box_clipped" if inside[index] else "box_outside", where)
    return replace(record, boxes=boxes, areas=areas).select(np.flatnonzero(inside).tolist())


@dataclass(frozen=True)
class SuspiciousImage:
    """An image with problems, for the page of a check."""

    file_name: str
    key: str | None
    problems: dict[str, list[str]]
    record: ImageRecord


@dataclass(frozen=True)
class CheckReport:
    """The result of a check."""

    classes: tuple[ObjectClass, ...]
    num_listed: int
    num_usable: int
    num_boxes: int
    num_crowds: int
    num_empty: int
    class_counts: tuple[int, ...]
    suspicious: tuple[SuspiciousImage, ...]


def check_dataset(
    source: SourceDataset,
    images: ImageStore,
    problems: ProblemLog,
    *,
    num_threads: int = 1,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[int], None] = lambda count: None,
) -> CheckReport:
    """Check every image and every box.

    Args:
        source: Classes and records.
        images: Where images are read from.
        problems: Where problems are counted.
        num_threads: Images checked at once.
        max_pixels: Larger images are refused.
        progress: Called for every image.
    """
    sizes = {entry.key: entry.size_bytes for entry in images.list()}

    def check(record: ImageRecord) -> tuple[ImageRecord | None, SuspiciousImage | None]:
        own = ProblemLog()
        key = image_key(record.file_name)
        fitted = _check_one(record, key, sizes, images, own, max_pixels)
        problems.merge(own.counts, own.examples)
        progress(1)
        suspicious = SuspiciousImage(record.file_name, key, own.examples, fitted or record) if own.counts else None
        return fitted, suspicious

    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
        checked = list(pool.map(check, source.records))
    usable = [record for record, _ in checked if record is not None]
    targets = [record.classes[~record.iscrowd] for record in usable]
    counts = np.bincount(np.concatenate([*targets, np.empty(0, dtype=np.int64)]), minlength=len(source.classes))
    return CheckReport(
        classes=source.classes,
        num_listed=len(source.records),
        num_usable=len(usable),
        num_boxes=int(counts.sum()),
        num_crowds=sum(int(record.iscrowd.sum()) for record in usable),
        num_empty=sum(len(classes) == 0 for classes in targets),
        class_counts=tuple(counts.tolist()),
        suspicious=tuple(entry for _, entry in checked if entry is not None)[:MOST_SUSPICIOUS_KEPT],
    )


def _check_one(
    record: ImageRecord, key: str | None, sizes: dict[str, int], images: ImageStore, own: ProblemLog, max_pixels: int
) -> ImageRecord | None:
    where = f"image {record.image_id}: file_name {record.file_name!r}"
    if key is None:
        own.add("image_path_outside", where)
        return None
    if key not in sizes:
        own.add("image_file_missing", where)
        return None
    try:
        data = read_image_file(images, key, sizes[key], max_pixels)
        checked = check_image(record, data, own, max_pixels=max_pixels)
    except ImageError as error:
        own.add(error.reason, f"{record.file_name}: {error}")
        return None
    except ObjectNotFoundError:
        own.add("image_file_missing", where)
        return None
    return checked.record if checked is not None else None
