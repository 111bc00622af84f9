"""Checks of a dataset that need its image files: every image is decoded and every box compared with it.

A build checks each image in the same way. The file decides about its size; the annotations decide about which way up it
is (see ``decode_image``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.text import plural
from yolofleet.data.annotation import THINNEST_BOX_PIXELS
from yolofleet.data.build_plan import tell_found
from yolofleet.data.decode import (
    DEFAULT_MAX_PIXELS,
    decode_image,
    exif_orientation,
    image_extension,
    image_size,
)
from yolofleet.data.file_finder import find_files, image_key
from yolofleet.data.image_formats import ImageError, has_more_frames, tiff_bands
from yolofleet.data.problems import ProblemLog, tell_crowds
from yolofleet.data.records import ImageRecord, ObjectClass
from yolofleet.data.sources import ImageStore, SourceDataset, read_image_file
from yolofleet.storage import ObjectNotFoundError

ROUNDING_PIXELS = 1.0
"""A box may reach so far out of its image before it is clipped. Annotation tools round; a box that is only rounded
keeps its exact numbers, so that AP over our copy equals AP over the source to the last digit."""
EXTREME_ASPECT = 50
MOST_BANDS = 4
MOST_SUSPICIOUS_KEPT = 200
IMAGES_AT_ONCE = 64
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
        upright = _is_upright(record, data, max_pixels, problems)
        pixels = decode_image(data, max_pixels=max_pixels, upright=upright is not False)
        extension = image_extension(data)
    except ImageError as error:
        problems.add(error.reason, f"{record.file_name}: {error}")
        return None
    height, width = pixels.shape[:2]
    if extension == "tiff" and (bands := tiff_bands(data)) > MOST_BANDS:
        problems.add("image_bands_left_out", f"{record.file_name}: {plural(bands, 'band')}")
    _note_oddities(record, extension, (width, height), problems, is_animated=has_more_frames(data))
    if _is_of_another_scale(record, (width, height)):
        seen = f"{record.width}x{record.height} in the annotations, {width}x{height} in the file"
        problems.add("image_size_scaled", f"{record.file_name}: {seen}")
        record = record.scaled_to(width, height)
    record = replace(record, width=width, height=height, upright=upright)
    return CheckedImage(_fit_boxes(record, problems), extension, pixels)


def _is_of_another_scale(record: ImageRecord, size: tuple[int, int]) -> bool:
    """Return whether boxes are of a larger or smaller copy: the annotations' size has the file's shape and holds them.

    The shorter side of a copy is rounded. Sides that differ by one pixel are of an image that was cut.
    """
    stated = np.array((record.width, record.height), dtype=np.float64)
    if not stated.all() or (np.abs(stated - size) <= 1).any():
        return False
    gain = max(size) / stated.max()
    far_corners = (record.boxes[:, :2] + record.boxes[:, 2:]).max(axis=0, initial=0.0)
    return bool(
        (np.abs(stated * gain - size) <= max(1.0, gain)).all() and (far_corners <= stated + ROUNDING_PIXELS).all()
    )


def _is_upright(record: ImageRecord, data: bytes, max_pixels: int, problems: ProblemLog) -> bool | None:
    """Return whether boxes are of the image as EXIF shows it, or as stored; None where EXIF does not turn it.

    The record says it, or its size: sides that fit one way only decide, also those of a larger or smaller copy. Where
    they fit both ways or neither, tools show images upright.
    """
    if (orientation := exif_orientation(data)) == 1:
        return None
    stored, where = image_size(data, max_pixels=max_pixels), f"{record.file_name}: EXIF orientation {orientation}"
    shown = stored[::-1] if orientation >= 5 else stored
    size = (record.width, record.height)
    fits_stored, fits_shown = (size == way or _is_of_another_scale(record, way) for way in (stored, shown))
    upright = record.upright if record.upright is not None else fits_shown or not fits_stored
    if record.upright is None and record.width and fits_stored == fits_shown:
        problems.add("image_turn_unclear", f"{where}, {size[0]}x{size[1]} in the annotations")
    problems.add("image_turned" if upright else "image_exif_ignored", where)
    return upright


def _note_oddities(
    record: ImageRecord, extension: str, size: tuple[int, int], problems: ProblemLog, *, is_animated: bool
) -> None:
    name = record.file_name
    if record.width and (record.width, record.height) != size and not _is_of_another_scale(record, size):
        seen = f"{name}: {record.width}x{record.height} in the annotations, {size[0]}x{size[1]} in the file"
        problems.add("image_size_wrong", seen)
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    if suffix and "?" not in suffix and suffix not in _EXTENSIONS_OF.get(extension, (extension,)):
        problems.add("image_extension_wrong", f"{name}: the content is {extension}")
    if is_animated:
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
    records: tuple[ImageRecord, ...]
    """The images that can be used, with their sizes and the boxes that are left."""
    keys: tuple[str, ...]
    """Where the file of each of them lies."""
    fingerprints: NDArray[Any]
    """(len(records),) rows of `yolofleet.data.duplicates.FINGERPRINT`."""


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
    from yolofleet.data.duplicates import FINGERPRINT, fingerprints_of, reduce_image  # a build needs none

    sizes = {entry.key: entry.size_bytes for entry in images.list()}
    keys = find_files([record.file_name for record in source.records], sizes.keys())
    fingerprints = np.zeros(len(source.records), FINGERPRINT)
    fitted: list[ImageRecord | None] = [None] * len(source.records)
    suspicious: list[SuspiciousImage] = []

    def check(first: int) -> None:
        """Check some images and take their fingerprints at once, which costs less than one by one."""
        prints: dict[int, tuple[bytes, NDArray[np.uint8]]] = {}
        for number, record in enumerate(source.records[first : first + IMAGES_AT_ONCE], start=first):
            own, key = ProblemLog(), keys[number]
            if (data := _read(record, key, sizes, images, own, max_pixels)) is not None:
                checked = check_image(record, data, own, max_pixels=max_pixels)
                if checked is not None:
                    fitted[number] = checked.record
                    prints[number] = hashlib.sha256(data).digest()[:16], reduce_image(checked.pixels)
            if own.counts:
                problems.merge(own.counts, own.examples)
                shown = key or image_key(record.file_name)
                suspicious.append(SuspiciousImage(record.file_name, shown, own.examples, fitted[number] or record))
            progress(1)
        digests, reduced = zip(*prints.values(), strict=True) if prints else ((), ())
        fingerprints[list(prints)] = fingerprints_of(digests, reduced)

    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
        list(pool.map(check, range(0, len(source.records), IMAGES_AT_ONCE)))
    usable = tuple(record for record in fitted if record is not None)
    targets = [record.classes[~record.iscrowd] for record in usable]
    counts = np.bincount(np.concatenate([*targets, np.empty(0, dtype=np.int64)]), minlength=len(source.classes))
    num_boxes, num_crowds = int(counts.sum()), sum(int(record.iscrowd.sum()) for record in usable)
    tell_crowds(num_crowds, num_boxes, problems)
    if not num_boxes and problems.num_boxes_lost():
        problems.add("no_box_left", problems.main_loss())
    return CheckReport(
        classes=source.classes,
        num_listed=len(source.records),
        num_usable=len(usable),
        num_boxes=num_boxes,
        num_crowds=num_crowds,
        num_empty=sum(len(classes) == 0 for classes in targets),
        class_counts=tuple(counts.tolist()),
        suspicious=tuple(suspicious[:MOST_SUSPICIOUS_KEPT]),
        records=usable,
        keys=tuple(key for key, record in zip(keys, fitted, strict=True) if key is not None and record is not None),
        fingerprints=fingerprints[[record is not None for record in fitted]],
    )


def _read(
    record: ImageRecord, key: str | None, sizes: dict[str, int], images: ImageStore, own: ProblemLog, max_pixels: int
) -> bytes | None:
    tell_found(record, key, own)
    if key is None:
        return None
    try:
        return read_image_file(images, key, sizes[key], max_pixels)
    except ImageError as error:
        own.add(error.reason, f"{record.file_name}: {error}")
        return None
    except ObjectNotFoundError:
        tell_found(record, None, own)  # removed since the listing
        return None
