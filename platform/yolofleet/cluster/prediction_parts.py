"""Predictions for many images in parts, each written once and whole, and the images as a numbered source.

    plan.json           what is predicted of which images: a folder belongs to one plan
    parts/00000007.json images 7 x size to 8 x size: their detections, and the images that could not be read
    detections.json     all of it as a COCO document, made when every part is there
    results.json        the same as a COCO result file

A part appears by one atomic write under a name that follows from its images, and it is a pure function of them: it is
the same whoever writes it, and however often. So a run that was killed is repeated, and computes only missing parts; a
damaged one counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from yolofleet.core.errors import UserError
from yolofleet.core.terminal import note
from yolofleet.core.text import and_more
from yolofleet.data.records import SampleError
from yolofleet.data.verification import open_verified
from yolofleet.evaluation.images import ImageReadError, read_image
from yolofleet.storage import Storage

PLAN_KEY = "plan.json"
PARTS_PREFIX = "parts/"
DOCUMENT_KEY = "detections.json"
RESULTS_KEY = "results.json"
FORMAT = 1
IMAGE_BYTES, DETECTION_BYTES = 40_000, 500
"""What a part holds at most of each image, and of each of its detections."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]


class PartImage(BaseModel):
    """An image that was predicted, as COCO lists it."""

    id: Whole
    file_name: str
    width: Whole
    height: Whole


class PartAnnotation(BaseModel):
    """A detection, as COCO lists it."""

    image_id: Whole
    category_id: Whole
    bbox: tuple[Number, Number, Number, Number]
    score: Number


class Part(BaseModel):
    """The detections of a part's images."""

    images: list[PartImage]
    annotations: list[PartAnnotation]
    problems: list[str]
    """A line for each image that could not be read."""


@dataclass(frozen=True, slots=True, eq=False)
class NumberedImage:
    """A decoded image."""

    image_id: int
    """Its id in the COCO document."""
    file_name: str
    """Its name there."""
    pixels: NDArray[np.uint8]
    """(H, W, 3) uint8 RGB."""


class ImageSource(Protocol):
    """Images by number, the same ones in every process; cheap to pickle for workers."""

    digest: str
    """Differs where the images differ."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, number: int) -> NumberedImage:
        """Read an image; an ImageReadError means that it is damaged, any other error that it cannot be read now."""


class ShardImages:
    """The images of a sharded dataset, with its image ids."""

    def __init__(self, url: str) -> None:
        self._dataset = open_verified(url)
        self.digest = self._dataset.manifest.digest

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, number: int) -> NumberedImage:
        """Read an image, turned as its annotations expect it.

        Raises:
            ImageReadError: It is damaged.
            StorageError: It cannot be fetched now.
        """
        try:
            sample = self._dataset.read_decoded(number)
            return NumberedImage(sample.record.image_id, sample.record.file_name, sample.pixels)
        except SampleError as error:
            shard, row = self._dataset.locate(number)
            raise ImageReadError(f"{self._dataset.manifest.shards[shard].name}/{row}: {error}") from error


class FileImages:
    """Image files, numbered from 1 in the order they were named."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Record the files as they are now.

        Raises:
            UserError: One of them cannot be read.
        """
        self._paths = [path.absolute() for path in paths]
        self._names = [str(path) for path in paths]
        digest = hashlib.sha256()
        for name, path in zip(self._names, self._paths, strict=True):
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from error
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, number: int) -> NumberedImage:
        """Read an image upright.

        Raises:
            ImageReadError: It is damaged.
        """
        return NumberedImage(number + 1, self._names[number], read_image(self._paths[number]))


@dataclass(frozen=True, kw_only=True)
class PredictionPlan:
    """What is predicted of which images."""

    weights_sha256: str
    """Digest of the detector."""
    data_digest: str
    """Digest of the images."""
    num_images: int
    part_size: int
    """Images of a part."""
    confidence: float
    """Lowest score kept."""
    iou: float
    """IoU above which NMS drops the lower-scored box of a class."""
    max_detections: int
    """Detections kept per image."""
    image_size: int
    """Long side of the input in pixels."""
    format: int = FORMAT
    """Version of this document."""

    @property
    def num_parts(self) -> int:
        """The number of parts."""
        return -(-self.num_images // self.part_size)

    def images(self, part: int) -> range:
        """Return the numbers of a part's images."""
        return range(part * self.part_size, min((part + 1) * self.part_size, self.num_images))


def part_key(part: int) -> str:
    """Return the key of a part."""
    return f"{PARTS_PREFIX}{part:08d}.json"


def missing_parts(storage: Storage, plan: PredictionPlan) -> list[int]:
    """Claim a folder for a plan, or resume in it, and return the parts that are missing or damaged.

    Raises:
        UserError: The folder holds predictions of another plan, or results that no prediction has made.
    """
    if storage.exists(RESULTS_KEY) and not storage.exists(PLAN_KEY):
        raise UserError(
            f"{storage.url}/{RESULTS_KEY} is there already, and no earlier prediction made it: choose another --out, "
            "or remove it"
        )
    text = json.dumps(asdict(plan), indent=1, sort_keys=True).encode()
    if not storage.put_if_absent(PLAN_KEY, text) and (differing := _differences(storage.get(PLAN_KEY), plan)):
        raise UserError(
            f"{storage.url} holds other predictions (they differ in {differing}); choose another --out, or delete it"
        )
    sizes = {entry.key: entry.size_bytes for entry in storage.list(PARTS_PREFIX)}
    missing = []
    for part in range(plan.num_parts):
        most_bytes = len(plan.images(part)) * (IMAGE_BYTES + plan.max_detections * DETECTION_BYTES)
        if (size := sizes.get(part_key(part))) is None or size > most_bytes or _read_part(storage, part) is None:
            missing.append(part)
    if damaged := [part_key(part) for part in missing if part_key(part) in sizes]:
        note(f"damaged, and made anew: {and_more(damaged, 3)}")
    return missing


def merge_parts(
    storage: Storage, plan: PredictionPlan, classes: Sequence[tuple[int, str]]
) -> tuple[dict[str, int], list[str]]:
    """Write the COCO document and the COCO results of all parts; no more than one part is held in memory.

    Returns:
        The numbers of images and annotations, and a line for each image that could not be read.

    Raises:
        UserError: A part is damaged.
    """
    problems: list[str] = []
    counts = {"images": 0, "annotations": 0}

    def images() -> Iterator[Any]:
        for part in _parts(storage, plan):
            problems.extend(part.problems)
            counts["images"] += len(part.images)
            yield from (image.model_dump() for image in part.images)

    def annotations() -> Iterator[Any]:
        for part in _parts(storage, plan):
            for annotation in part.annotations:
                counts["annotations"] += 1
                _, _, width, height = annotation.bbox
                area = round(width * height, 3)
                yield {"id": counts["annotations"], **annotation.model_dump(), "area": area, "iscrowd": 0}

    def results() -> Iterator[Any]:
        for part in _parts(storage, plan):
            yield from (entry.model_dump() for entry in part.annotations)

    categories = iter([{"id": category_id, "name": name} for category_id, name in classes])
    with tempfile.TemporaryDirectory(prefix="yolofleet-merge-") as folder:
        document, result_list = Path(folder, DOCUMENT_KEY), Path(folder, RESULTS_KEY)
        with document.open("w", encoding="utf-8") as file:
            lists = {"images": images(), "categories": categories, "annotations": annotations()}
            for position, (key, values) in enumerate(lists.items()):
                file.write(f'{"," if position else "{"}\n"{key}": ')
                _write_list(file, values)
            file.write("}\n")
        with result_list.open("w", encoding="utf-8") as file:
            _write_list(file, results())
        storage.put(RESULTS_KEY, result_list)
        storage.put(DOCUMENT_KEY, document)
    return counts, problems


def _parts(storage: Storage, plan: PredictionPlan) -> Iterator[Part]:
    for number in range(plan.num_parts):
        if (part := _read_part(storage, number)) is None:
            raise UserError(
                f"{storage.url}/{part_key(number)}: is damaged; run the same command again, which makes it anew"
            )
        yield part


def _read_part(storage: Storage, part: int) -> Part | None:
    """Return a part; None where it is damaged."""
    try:
        # Python's JSON reads names that are not UTF-8, too.
        return Part.model_validate(json.loads(storage.get(part_key(part))))
    except (ValueError, RecursionError):
        return None


def _write_list(file: Any, values: Iterator[Any]) -> None:
    file.write("[")
    for position, value in enumerate(values):
        file.write(("," if position else "") + "\n " + json.dumps(value))
    file.write("]\n")


def _differences(content: bytes, plan: PredictionPlan) -> str:
    """Return the names of the fields in which a stored plan differs, nothing where it is the same plan."""
    try:
        stored = json.loads(content)
        stored.setdefault("num_images", stored.pop("num_pictures", None))  # the key of older plans
        return ", ".join(key for key, value in asdict(plan).items() if stored.get(key) != value)
    except (ValueError, AttributeError, RecursionError):
        return "all of it"
