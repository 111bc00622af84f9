"""Which image goes into which shard, decided before any image is read.

The plan is a pure function of the annotations, the listing of the image folder and the options, and it has a digest.
So an interrupted build finds the shards that it had finished, and two builds of the same input are equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.file_finder import find_files, image_key
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord, ObjectClass

BUILD_VERSION = 2
"""Raised whenever equal input would give other bytes than before, so that old half-built shards are not mixed in."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The choices of a build; all of them are part of the plan's digest."""

    shard_bytes: int = 128 * 2**20
    """A shard is closed when the next image would make it larger."""
    shard_samples: int = 10_000
    """Most samples in a shard."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Larger images are left out."""
    reencode_quality: int | None = None
    """JPEG quality to encode every image anew with; None keeps the bytes of the source."""
    longest_side: int | None = None
    """Images with a longer side are scaled down to it (only together with ``reencode_quality``)."""
    shuffle: bool = True
    """Deal images to shards in the order of a hash of their ids, so that a shard is a random sample of the dataset
    and the windowed shuffle of training mixes as well as a full one, however the source is sorted."""
    split: tuple[float, float] = (0.0, 1.0)
    """The share of images to take, as an interval of the hash of their ids."""


@dataclass(frozen=True)
class PlannedImage:
    """An image of a planned shard: its position in the source, its key and size in storage, its record."""

    position: int
    key: str
    size_bytes: int
    record: ImageRecord


@dataclass(frozen=True)
class PlannedShard:
    """A shard's name and its images."""

    name: str
    images: tuple[PlannedImage, ...]


@dataclass(frozen=True)
class BuildPlan:
    """The shards of a build, before any image is read."""

    classes: tuple[ObjectClass, ...]
    shards: tuple[PlannedShard, ...]
    num_listed: int
    digest: str


def plan_build(
    classes: tuple[ObjectClass, ...],
    records: tuple[ImageRecord, ...],
    sizes: Mapping[str, int],
    options: BuildOptions,
    problems: ProblemLog,
) -> BuildPlan:
    """Assign images to shards.

    Args:
        classes: Classes by index.
        records: The source's images, in its order.
        sizes: Bytes of every object below the folder of images, by key.
        options: The user's choices.
        problems: Where missing and forbidden files are counted.
    """
    keys = find_files([record.file_name for record in records], sizes.keys())
    num_listed = 0
    images = []
    for position, (record, key) in enumerate(zip(records, keys, strict=True)):
        if not in_split(record.image_id, options.split):
            continue
        num_listed += 1
        tell_found(record, key, problems)
        if key is not None:
            images.append(PlannedImage(position, key, sizes[key], record))
    if options.shuffle:
        images.sort(key=lambda image: (hash_share(image.record.image_id), image.position))
    shards = tuple(
        PlannedShard(f"shard-{number:06d}", tuple(group))
        for number, group in enumerate(_group(images, options.shard_bytes, options.shard_samples))
    )
    return BuildPlan(classes, shards, num_listed, _digest(classes, images, options))


def tell_found(record: ImageRecord, key: str | None, problems: ProblemLog) -> None:
    """Count an image whose file was not found, or only under another form of its name."""
    where = f"image {record.image_id}: file_name {record.file_name!r}"
    own_key = image_key(record.file_name)
    if key is None:
        problems.add("image_path_outside" if own_key is None else "image_file_missing", where)
    elif key != own_key:
        problems.add("file_name_repaired", f"{where} is {key}")


def in_split(image_id: int, split: tuple[float, float]) -> bool:
    """Return whether an image belongs to a split, by the hash of its id: stable when images are added or removed."""
    if split == (0.0, 1.0):
        return True
    return split[0] <= hash_share(image_id) < split[1]


def hash_share(image_id: int) -> float:
    """Return the hash of an image's id as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:8], "big") / 2**64


def _group(images: list[PlannedImage], most_bytes: int, most_samples: int) -> list[list[PlannedImage]]:
    groups: list[list[PlannedImage]] = []
    used_bytes = 0
    for image in images:
        if not groups or used_bytes + image.size_bytes > most_bytes or len(groups[-1]) >= most_samples:
            groups.append([])
            used_bytes = 0
        groups[-1].append(image)
        used_bytes += image.size_bytes
    return groups


def _digest(classes: tuple[ObjectClass, ...], images: list[PlannedImage], options: BuildOptions) -> str:
    digest = hashlib.sha256()
    head = {"build": BUILD_VERSION, "classes": [asdict(entry) for entry in classes], "options": asdict(options)}
    digest.update(json.dumps(head, sort_keys=True).encode())
    for image in images:
        digest.update(f"\n{image.position}\0{image.key}\0{image.size_bytes}\0".encode())
        digest.update(image.record.to_json())
    return digest.hexdigest()
