"""Checking a dataset before anything is built from it: every picture decoded, every box looked at, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from yolofleet.data.build_plan import picture_key
from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.picture_checks import check_picture
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord
from yolofleet.data.sources import PictureStore, SourceDataset
from yolofleet.storage import ObjectNotFoundError

MOST_SUSPICIOUS_KEPT = 200


@dataclass(frozen=True)
class SuspiciousPicture:
    """A picture with problems, for people to look at."""

    file_name: str
    key: str | None
    problems: dict[str, list[str]]
    record: ImageRecord


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    num_listed: int
    num_usable: int
    num_boxes: int
    num_crowds: int
    num_empty: int
    class_counts: tuple[int, ...]
    suspicious: tuple[SuspiciousPicture, ...]


def check_dataset(
    source: SourceDataset,
    images: PictureStore,
    problems: ProblemLog,
    *,
    num_threads: int = 1,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[int], None] = lambda count: None,
) -> CheckReport:
    """Look at every picture and every box.

    Args:
        source: Classes and records.
        images: Where the pictures are.
        problems: Where problems are counted.
        num_threads: Pictures looked at at once.
        max_pixels: Larger pictures are refused.
        progress: Told of every picture.
    """
    present = {entry.key for entry in images.list()}

    def look(record: ImageRecord) -> tuple[ImageRecord | None, SuspiciousPicture | None]:
        own = ProblemLog()
        key = picture_key(record.file_name)
        fitted = _look(record, key, present, images, own, max_pixels)
        problems.merge(own.counts, own.examples)
        progress(1)
        suspicious = SuspiciousPicture(record.file_name, key, own.examples, fitted or record) if own.counts else None
        return fitted, suspicious

    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
        looked = list(pool.map(look, source.records))
    usable = [record for record, _ in looked if record is not None]
    targets = [record.classes[~record.iscrowd] for record in usable]
    counts = np.bincount(np.concatenate([*targets, np.empty(0, dtype=np.int64)]), minlength=len(source.classes))
    return CheckReport(
        num_listed=len(source.records),
        num_usable=len(usable),
        num_boxes=int(counts.sum()),
        num_crowds=sum(int(record.iscrowd.sum()) for record in usable),
        num_empty=sum(len(classes) == 0 for classes in targets),
        class_counts=tuple(counts.tolist()),
        suspicious=tuple(entry for _, entry in looked if entry is not None)[:MOST_SUSPICIOUS_KEPT],
    )


def _look(
    record: ImageRecord, key: str | None, present: set[str], images: PictureStore, own: ProblemLog, max_pixels: int
) -> ImageRecord | None:
    where = f"image {record.image_id}: file_name {record.file_name!r}"
    if key is None:
        own.add("image_path_outside", where)
        return None
    if key not in present:
        own.add("image_file_missing", where)
        return None
    try:
        checked = check_picture(record, images.get(key), own, max_pixels=max_pixels)
    except ObjectNotFoundError:
        own.add("image_file_missing", where)
        return None
    return checked.record if checked is not None else None
