"""A dataset of shards, read sample by sample: local files directly, remote storage through the node's cache."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.retry import retry
from yolofleet.data.cache import CacheSettings, Prefetcher, ShardCache
from yolofleet.data.decode import DEFAULT_MAX_PIXELS, BufferPool, ImageError, decode_image
from yolofleet.data.manifest import IndexFormatError, Manifest, ShardEntry, ShardIndex
from yolofleet.data.records import ImageRecord, RecordError
from yolofleet.storage import ObjectNotFoundError, StorageError, open_storage

MOST_INDEXES_KEPT = 64
MOST_OPEN_SHARDS = 16
"""Two windows. An open shard occupies the disk even when the cache has evicted it, so few are kept open."""
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class SampleError(UserError):
    """One sample cannot be used; ``reason`` is a short word to count it by, ``key`` names the sample."""

    def __init__(self, reason: str, message: str, key: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.key = key


@dataclass(frozen=True)
class Sample:
    """One sample as stored in its shard: encoded image and annotation."""

    key: str
    image: bytes
    annotation: bytes

    def record(self) -> ImageRecord:
        """Return the annotation.

        Raises:
            RecordError: It is damaged.
        """
        return ImageRecord.from_json(self.annotation)

    def pixels(
        self, record: ImageRecord, max_pixels: int = DEFAULT_MAX_PIXELS, buffers: BufferPool | None = None
    ) -> NDArray[np.uint8]:
        """Decode the image, (height, width, 3) RGB, the way up that the record speaks of.

        Raises:
            ImageError: It is damaged or too large.
        """
        annotated = (record.width, record.height)
        return decode_image(self.image, max_pixels=max_pixels, annotated_size=annotated, buffers=buffers)


class ShardDataset:
    """The samples of a dataset by number, in the order of its shards. Safe among threads, cheap to pickle for workers.

    Args:
        url: Folder of the dataset: a path, ``file://`` or ``s3://``.
        cache: The node's shard cache for remote storage; None takes a folder in the system's temporary directory.

    Raises:
        ManifestError: There is no dataset.
        StorageError: The storage does not answer.
    """

    def __init__(self, url: str | Path, cache: CacheSettings | None = None) -> None:
        self.url = str(url)
        self.storage = open_storage(url)
        self.manifest = Manifest.read(self.storage)
        self.classes: list[tuple[int, str]] = [(entry.id, entry.name) for entry in self.manifest.classes]
        self._settings = cache or CacheSettings(path=Path(tempfile.gettempdir()) / f"yolofleet-cache-{os.getuid()}")
        self._start_reading()

    def _start_reading(self) -> None:
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._descriptors: OrderedDict[int, _Descriptor] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        private = ("_lock", "_indexes", "_descriptors", "_prefetcher", "_cache")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_reading()

    def __len__(self) -> int:
        return self.manifest.num_samples

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Samples of each shard."""
        return np.array([entry.samples for entry in self.manifest.shards], dtype=np.int64)

    @cached_property
    def shard_starts(self) -> NDArray[np.int64]:
        """Number of each shard's first sample."""
        return np.cumsum(self.shard_sizes) - self.shard_sizes

    @cached_property
    def _cache(self) -> ShardCache:
        return ShardCache(self._settings)

    def locate(self, number: int) -> tuple[int, int]:
        """Return (shard, row) of a sample."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = int(np.searchsorted(self.shard_starts, number, side="right")) - 1
        return shard, number - int(self.shard_starts[shard])

    def index(self, shard: int) -> ShardIndex:
        """Return the index of a shard."""
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        entry = self.manifest.shards[shard]
        if self.storage.local_path(entry.index_key) is not None:
            data = self._wait_for(lambda: self.storage.get(entry.index_key))
            if hashlib.sha256(data).hexdigest() != entry.index_sha256:
                name = f"{self.storage.url}/{entry.index_key}"
                raise IndexFormatError(f"{name}: not the index that the manifest names; build the shards again")
        else:
            data = self._cache.index(self.storage, entry)
        index = ShardIndex.from_bytes(data, f"{self.storage.url}/{entry.index_key}")
        with self._lock:
            self._indexes[shard] = index
            if len(self._indexes) > MOST_INDEXES_KEPT:
                self._indexes.popitem(last=False)
        return index

    def read(self, number: int) -> Sample:
        """Read one sample.

        Raises:
            SampleError: The shard ends before the sample does.
            StorageError: The shard cannot be read from storage.
        """
        shard, row_number = self.locate(number)
        entry, index = self.manifest.shards[shard], self.index(shard)
        if row_number >= len(index):
            raise SampleError("sample_lost", f"{entry.tar_key}: its index has only {len(index)} of {entry.samples}")
        row, key = index.rows[row_number], index.keys[row_number]
        image_start, json_start = int(row["image_offset"]), int(row["json_offset"])
        start = min(image_start, json_start)
        end = max(image_start + int(row["image_bytes"]), json_start + int(row["json_bytes"]))
        data = self._wait_for(lambda: self._read_span(shard, entry, start, end - start))
        if len(data) != end - start:
            raise SampleError("sample_lost", f"{self.storage.url}/{entry.tar_key}: the shard ends before sample {key}")
        image = data[image_start - start :][: int(row["image_bytes"])]
        return Sample(key, image, data[json_start - start :][: int(row["json_bytes"])])

    def read_decoded(
        self, number: int, max_pixels: int = DEFAULT_MAX_PIXELS, buffers: BufferPool | None = None
    ) -> tuple[str, ImageRecord, NDArray[np.uint8]]:
        """Read one sample and decode it: its key, annotation and pixels (height, width, 3) RGB.

        Raises:
            SampleError: Any part of it is damaged, or the image is too large.
            StorageError: The shard cannot be read from storage.
        """
        shard, row = self.locate(number)
        key = f"{self.manifest.shards[shard].name}/{row}"
        try:
            sample = self.read(number)
            key = sample.key
            record = sample.record()
            return key, record, sample.pixels(record, max_pixels, buffers)
        except (SampleError, ImageError) as error:
            raise SampleError(error.reason, str(error), key) from error
        except RecordError as error:
            raise SampleError("sample_json_damaged", str(error), key) from error

    def _read_span(self, shard: int, entry: ShardEntry, start: int, length: int) -> bytes:
        with self._lock:
            descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = _Descriptor(self._open(entry))
            with self._lock:
                descriptor = self._descriptors.setdefault(shard, descriptor)
                self._descriptors.move_to_end(shard)
                if len(self._descriptors) > MOST_OPEN_SHARDS:
                    self._descriptors.popitem(last=False)  # closed when its last reader lets go of it
        try:
            return descriptor.read(start, length)
        except OSError as error:
            raise StorageError(f"{self.storage.url}/{entry.tar_key}: {error.strerror}", transient=True) from error

    def _open(self, entry: ShardEntry) -> int:
        local = self.storage.local_path(entry.tar_key)
        if local is None:
            return self._cache.open(self.storage, entry)
        try:
            return os.open(local, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ObjectNotFoundError(f"{local}: the shard is missing; build the dataset again") from None
        except OSError as error:
            forbidden = error.errno in (errno.EACCES, errno.EPERM)
            raise StorageError(f"{local}: {error.strerror}", transient=not forbidden) from error

    def _wait_for(self, action: Callable[[], Result]) -> Result:
        """Return what an action on the storage returns. A transient failure is waited out, never skipped."""
        return retry(
            action,
            patience_seconds=self._settings.patience_seconds,
            is_transient=lambda error: isinstance(error, StorageError) and error.transient,
            on_retry=lambda error, pause: logger.warning("%s; trying again in %.1f s", error, pause),
        )

    @property
    def is_remote(self) -> bool:
        """Whether shards are read through the cache, because they are not on a disk of this machine."""
        return bool(self.manifest.shards) and self.storage.local_path(self.manifest.shards[0].tar_key) is None

    @property
    def cache_bytes(self) -> int:
        """Most bytes that the node's cache may hold."""
        return self._settings.max_bytes

    @property
    def cache_path(self) -> Path:
        """Folder of the node's cache."""
        return self._settings.path

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch shards of remote storage in the background; nothing to do for local ones."""
        if self.is_remote:
            self._prefetcher.ask(list(shards))

    @cached_property
    def _prefetcher(self) -> Prefetcher:
        return Prefetcher(lambda shard: self._cache.ensure(self.storage, self.manifest.shards[shard]))

    def records(self) -> Iterator[tuple[str, ImageRecord]]:
        """Yield (key, record) of every sample in order; a sample that cannot be read is left out."""
        for number in range(len(self)):
            try:
                sample = self.read(number)
                yield sample.key, sample.record()
            except (SampleError, RecordError):
                continue  # it is counted where its image is read

    def annotations(self) -> dict[str, Any]:
        """Return the ground truth of all samples as a COCO "instances" document.

        Category ids are those of the source, annotation ids count from 1 (pycocotools takes id 0 for unmatched).
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for _, record in self.records():
            images.append(
                {"id": record.image_id, "file_name": record.file_name, "width": record.width, "height": record.height}
            )
            for index, box in enumerate(record.boxes.tolist()):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record.image_id,
                        "category_id": self.classes[int(record.classes[index])][0],
                        "bbox": box,
                        "area": float(record.areas[index]),
                        "iscrowd": int(record.iscrowd[index]),
                    }
                )
        categories = [{"id": identity, "name": name} for identity, name in self.classes]
        return {"images": images, "annotations": annotations, "categories": categories}


class _Descriptor:
    """An open shard, closed when its last reader lets go of it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def read(self, start: int, length: int) -> bytes:
        return os.pread(self._number, length, start)

    def __del__(self) -> None:
        os.close(self._number)
