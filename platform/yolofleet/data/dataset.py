"""A dataset of shards, read sample by sample: local files directly, remote storage through the node's cache."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import resource
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.retry import retry
from yolofleet.core.text import plural
from yolofleet.data.annotation import MOST_ANNOTATION_BYTES, RecordError, read_annotation
from yolofleet.data.cache import ShardCache
from yolofleet.data.cache_folder import CacheSettings
from yolofleet.data.decode import DEFAULT_MAX_PIXELS, check_file_size, decode_reduced
from yolofleet.data.image_formats import BufferPool, ImageError
from yolofleet.data.manifest import IndexFormatError, Manifest, ShardEntry, ShardIndex, most_index_bytes
from yolofleet.data.records import DecodedSample, ImageRecord, Sample, SampleError
from yolofleet.storage import ObjectNotFoundError, StorageError, is_transient, open_storage

MOST_INDEXES_KEPT = 64
MOST_OPEN_SHARDS = 16
"""Two windows; more where more lanes are read. An open shard occupies the disk even when the cache has evicted it."""
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class ShardDataset:
    """The samples of a dataset by number, in the order of its shards. Safe among threads, cheap to pickle for workers.

    Args:
        url: Folder of the dataset: a path, ``file://`` or ``s3://``.
        cache: The node's shard cache for remote storage; None takes a folder in the system's temporary directory.

    Attributes:
        cache_settings: Of that cache.

    Raises:
        ManifestError: There is no dataset.
        StorageError: The storage does not answer.
    """

    def __init__(self, url: str | Path, cache: CacheSettings | None = None) -> None:
        self.url = str(url)
        self.storage = open_storage(url)
        self.manifest = Manifest.read(self.storage)
        self.classes: list[tuple[int, str]] = [(entry.id, entry.name) for entry in self.manifest.classes]
        self.cache_settings = cache or CacheSettings()
        self._start_reading()

    def _start_reading(self) -> None:
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._descriptors: OrderedDict[int, _Descriptor] = OrderedDict()
        self._most_open = MOST_OPEN_SHARDS

    def __getstate__(self) -> dict[str, Any]:
        private = ("_lock", "_indexes", "_descriptors", "cache")
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
    def cache(self) -> ShardCache:
        """The node's cache; its threads end with this object."""
        cache = ShardCache(self.cache_settings)
        weakref.finalize(self, cache.close).atexit = False
        return cache

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
        name = f"{self.storage.url}/{entry.index_key}"
        if self.storage.local_path(entry.index_key) is not None:
            data = self._wait_for(lambda: self.storage.get_at_most(entry.index_key, most_index_bytes(entry)))
            if hashlib.sha256(data).hexdigest() != entry.index_sha256:
                raise IndexFormatError(f"{name}: not the index that the manifest names; build the shards again")
        else:
            data = self.cache.index(self.storage, entry)
        index = ShardIndex.from_bytes(data, entry, name)
        with self._lock:
            self._indexes[shard] = index
            if len(self._indexes) > MOST_INDEXES_KEPT:
                self._indexes.popitem(last=False)
        return index

    def read(self, number: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> Sample:
        """Read one sample.

        Raises:
            SampleError: The shard ends before the sample does, or a file in it is too large to be what it should be.
            IndexFormatError: The index of its shard is damaged.
            StorageError: The shard cannot be read from storage.
        """
        shard, key, row = self._find(number)
        try:
            check_file_size(row["image_bytes"], max_pixels)
        except ImageError as error:
            raise SampleError(error.reason, str(error), key) from error
        image_start, json_start = row["image_offset"], row["json_offset"]
        start = min(image_start, json_start)
        end = max(image_start + row["image_bytes"], json_start + row["json_bytes"])
        data = self._read_span(shard, key, start, end - start)
        image = data[image_start - start :][: row["image_bytes"]]
        return Sample(key, image, data[json_start - start :][: row["json_bytes"]])

    def read_record(self, number: int, *, by_range: bool = False) -> tuple[str, ImageRecord]:
        """Read the key and the annotation of one sample; it raises what `read` raises.

        Args:
            number: Of the sample.
            by_range: Ask remote storage for the annotation alone, instead of fetching its shard into the cache.
        """
        shard, key, row = self._find(number)
        start, length = row["json_offset"], row["json_bytes"]
        if by_range:
            data = self.storage.get_range(self.manifest.shards[shard].tar_key, start, length)
        else:
            data = self._read_span(shard, key, start, length)
        return key, self._record(data, key)

    def read_decoded(
        self,
        number: int,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        buffers: BufferPool | None = None,
        needed_side: int | None = None,
    ) -> DecodedSample:
        """Read one sample and decode it.

        Args:
            number: Of the sample.
            max_pixels: Larger images are refused.
            buffers: Where to take the memory from.
            needed_side: Longer side that the image will be scaled to; a far larger one is decoded at a reduced size
                (`decode.reduction`). None decodes in full.

        Raises:
            SampleError: Any part of it is damaged, or the image is too large; else as `read`.
        """
        key, image, annotation = self.read(number, max_pixels)
        record = self._record(annotation, key)
        try:
            pixels, full_size = decode_reduced(
                image, max_pixels=max_pixels, upright=record.way_up, buffers=buffers, needed_side=needed_side
            )
        except ImageError as error:
            raise SampleError(error.reason, str(error), key) from error
        return DecodedSample(key, record, pixels, full_size)

    def _find(self, number: int) -> tuple[int, str, dict[str, int]]:
        """Return the shard of a sample, its key and its row of the index."""
        shard, row_number = self.locate(number)
        index = self.index(shard)
        row = dict(zip(index.rows.dtype.names or (), index.rows[row_number].tolist(), strict=True))
        key = index.keys[row_number]
        if row["json_bytes"] > MOST_ANNOTATION_BYTES:
            size = plural(row["json_bytes"], "byte")
            raise SampleError("sample_json_damaged", f"an annotation of {size} is too long", key)
        return shard, key, row

    def _record(self, annotation: bytes, key: str) -> ImageRecord:
        try:
            return read_annotation(annotation, len(self.manifest.classes))
        except RecordError as error:
            raise SampleError("sample_json_damaged", str(error), key) from error

    def _read_span(self, shard: int, key: str, start: int, length: int) -> bytes:
        """Return bytes of a shard, all of them."""
        entry = self.manifest.shards[shard]
        data = self._wait_for(lambda: self._descriptor_of(shard, entry).read(start, length))
        if len(data) != length:
            where = f"{self.storage.url}/{entry.tar_key}"
            raise SampleError("sample_lost", f"{where}: the shard ends before sample {key}", key)
        return data

    def _descriptor_of(self, shard: int, entry: ShardEntry) -> _Descriptor:
        with self._lock:
            descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = _Descriptor(self._open(entry), f"{self.storage.url}/{entry.tar_key}")
            with self._lock:
                descriptor = self._descriptors.setdefault(shard, descriptor)
                self._descriptors.move_to_end(shard)
                self._close_longest_unused()
        return descriptor

    def _close_longest_unused(self) -> None:
        while len(self._descriptors) > self._most_open:
            self._descriptors.popitem(last=False)  # closed when its last reader lets go of it

    def _open(self, entry: ShardEntry) -> int:
        local = self.storage.local_path(entry.tar_key)
        if local is None:
            return self.cache.open(self.storage, entry)
        try:
            descriptor = os.open(local, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # reading a pipe or a device might never end
                os.close(descriptor)
                raise FileNotFoundError
            return descriptor
        except FileNotFoundError:
            raise ObjectNotFoundError(f"{local}: the shard is missing; build the dataset again") from None
        except OSError as error:
            forbidden = error.errno in (errno.EACCES, errno.EPERM)
            raise StorageError(f"{local}: {error.strerror}", transient=not forbidden) from error

    def _wait_for(self, action: Callable[[], Result]) -> Result:
        """Return what an action on the storage returns. A transient failure is waited out, never skipped."""
        return retry(
            action,
            patience_seconds=self.cache_settings.patience_seconds,
            is_transient=is_transient,
            on_retry=lambda error, pause: logger.warning("%s; trying again in %.1f s", error, pause),
        )

    @property
    def is_remote(self) -> bool:
        """Whether shards are read through the cache, because they are not on a disk of this machine."""
        return bool(self.manifest.shards) and self.storage.local_path(self.manifest.shards[0].tar_key) is None

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch shards of remote storage in the background; nothing to do for local ones.

        Args:
            shards: Those that will be read, in the order in which they are needed, with those that are still being
                read: they are kept in the cache until a later call does not name them.
        """
        most_allowed = max(MOST_OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        with self._lock:
            self._most_open = min(max(MOST_OPEN_SHARDS, len(set(shards))), most_allowed)
            self._close_longest_unused()
        if self.is_remote:
            self.cache.prefetch(self.storage, [self.manifest.shards[shard] for shard in shards])

    def records(self, skipped: list[tuple[str, str]] | None = None) -> Iterator[tuple[str, ImageRecord]]:
        """Yield (key, record) of every sample in order; add (key, reason) of those that cannot be read to a list."""
        for number in range(len(self)):
            try:
                yield self.read_record(number)
            except SampleError as error:
                if skipped is not None:
                    skipped.append((error.key, error.reason))

    def annotations(self, skipped: list[tuple[str, str]] | None = None) -> dict[str, Any]:
        """Return the ground truth of all samples as a COCO "instances" document.

        Category ids are those of the source, annotation ids count from 1 (pycocotools takes id 0 for unmatched).
        ``skipped`` is that of `records`.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for _, record in self.records(skipped):
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

    def __init__(self, number: int, name: str) -> None:
        self._number = number
        self._name = name

    def read(self, start: int, length: int) -> bytes:
        try:
            return os.pread(self._number, length, start)
        except OSError as error:
            raise StorageError(f"{self._name}: {error.strerror}", transient=True) from error

    def __del__(self) -> None:
        os.close(self._number)
