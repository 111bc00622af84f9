"""Whether a dataset is whole: its files are those that its manifest names, checked once before use; what it holds.

Remote shards are checked against their digests when they are fetched into the cache. Local ones are checked here, at
the start of whatever reads them. What was found right is noted in the cache folder under the files' sizes and times, so
that it is read only once. Damage that happens later costs the samples that it hits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolofleet.core.text import plural
from yolofleet.data.cache_folder import CacheError, CacheSettings, verified_note
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.histograms import OBJECTS_EDGES, SIDE_EDGES
from yolofleet.data.manifest import IndexFormatError, ManifestError, ShardEntry
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord, SampleError
from yolofleet.storage import ObjectNotFoundError

NUM_THREADS = 4


def open_verified(url: str | Path, cache: CacheSettings | None = None) -> ShardDataset:
    """Open a dataset and check that its files are those of its manifest.

    Raises:
        ManifestError: There is no dataset, or a file is missing or another one.
        IndexFormatError: An index is damaged or does not fit its shard.
        StorageError: The storage does not answer.
    """
    dataset = ShardDataset(url, cache)
    sizes = {entry.key: entry.size_bytes for entry in dataset.storage.list("shards/")}
    for entry in dataset.manifest.shards:
        if problem := size_problem(entry, sizes):
            raise ManifestError(f"{dataset.storage.url}: {problem}; build the dataset again")
    if dataset.is_remote:
        return dataset
    note = _note(dataset)
    if note is not None and note.exists():
        return dataset
    for shard in range(len(dataset.manifest.shards)):
        dataset.index(shard)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for problem in pool.map(lambda entry: next(digest_problems(dataset, entry), None), dataset.manifest.shards):
            if problem:
                pool.shutdown(cancel_futures=True)
                raise ManifestError(f"{dataset.storage.url}: {problem}; build the dataset again")
    if note is not None:
        note.touch()
    return dataset


def size_problem(entry: ShardEntry, sizes: dict[str, int]) -> str | None:
    """Return what is wrong with a shard by the sizes of the files in its folder."""
    if (size := sizes.get(entry.tar_key)) != entry.bytes:
        found = "is missing" if size is None else f"has {plural(size, 'byte')}, not {entry.bytes:,}"
        return f"{entry.tar_key} {found}"
    return None if entry.index_key in sizes else f"{entry.index_key} is missing"


def digest_problems(dataset: ShardDataset, entry: ShardEntry) -> Iterator[str]:
    """Yield what is wrong with the content of a shard and its index; both are read to their ends."""
    for key, expected in ((entry.tar_key, entry.sha256), (entry.index_key, entry.index_sha256)):
        try:
            with dataset.storage.open_stream(key) as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except ObjectNotFoundError:
            yield f"{key} is missing"
            continue
        if sha256 != expected:
            yield f"{key} has sha256 {sha256[:12]}..., the manifest says {expected[:12]}..."


def _note(dataset: ShardDataset) -> Path | None:
    """Return the path of the note on the files as they are now; None where the cache cannot be used."""
    digest = hashlib.sha256(dataset.manifest.digest.encode())
    try:
        for entry in dataset.manifest.shards:
            for key in (entry.tar_key, entry.index_key):
                path = (dataset.storage.local_path(key) or Path(key)).resolve()
                status = path.stat()
                digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return verified_note(dataset.cache_settings.path, digest.hexdigest())
    except (OSError, CacheError):
        return None


@dataclass
class Inspection:
    """The content of a dataset, counted by reading all of it."""

    num_images: int = 0
    """Samples that can be read."""
    class_counts: dict[str, int] = field(default_factory=dict)
    """Boxes by class, crowds left out."""
    num_crowds: int = 0
    """Crowd regions."""
    objects_per_image: dict[str, int] = field(default_factory=dict)
    """Images by number of boxes; key "4" stands for 4 to 7 and so on."""
    box_sides: dict[str, int] = field(default_factory=dict)
    """Boxes by the square root of their area in pixels, in the same way."""
    image_sizes: dict[str, int] = field(default_factory=dict)
    """Images by "WIDTHxHEIGHT", the commonest first."""
    problems: ProblemLog = field(default_factory=ProblemLog)
    """Damage, counted by kind."""

    def as_document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "num_images": self.num_images,
            "num_boxes": sum(self.class_counts.values()),
            "num_crowds": self.num_crowds,
            "class_counts": self.class_counts,
            "objects_per_image": self.objects_per_image,
            "box_sides": self.box_sides,
            "image_sizes": dict(sorted(self.image_sizes.items(), key=lambda item: -item[1])[:20]),
            "problems": self.problems.as_document(),
        }


def inspect_dataset(
    dataset: ShardDataset, *, verify: bool = True, progress: Callable[[int], None] = lambda count: None
) -> Inspection:
    """Read a whole dataset.

    Args:
        dataset: The dataset.
        verify: Compare the bytes of every shard and index with the manifest.
        progress: Called for every shard with its number of samples.
    """
    found = Inspection(class_counts={name: 0 for _, name in dataset.classes})
    names = [name for _, name in dataset.classes]
    for shard, entry in enumerate(dataset.manifest.shards):
        if verify:
            for problem in digest_problems(dataset, entry):
                found.problems.add("shard_damaged", f"{dataset.storage.url}/{problem}")
        start = int(dataset.shard_starts[shard])
        for number in range(start, start + entry.samples):
            where = f"{entry.name}, sample {number - start}"
            try:
                _count(dataset.read_record(number)[1], names, found)
            except SampleError as error:
                found.problems.add(error.reason, f"{where}: {error}")
            except (ObjectNotFoundError, IndexFormatError) as error:
                found.problems.add("shard_damaged", str(error))
                break
        progress(entry.samples)
    return found


def _count(record: ImageRecord, names: list[str], found: Inspection) -> None:
    targets = np.flatnonzero(~record.iscrowd)
    found.num_images += 1
    found.num_crowds += len(record.iscrowd) - len(targets)
    _increase(found.objects_per_image, _bin(len(targets), OBJECTS_EDGES))
    _increase(found.image_sizes, f"{record.width}x{record.height}")
    for index in targets:
        _increase(found.class_counts, names[int(record.classes[index])])
        side = float(np.sqrt(record.boxes[index, 2] * record.boxes[index, 3]))
        _increase(found.box_sides, _bin(side, SIDE_EDGES))


def _bin(value: float, edges: tuple[int, ...]) -> str:
    return str(max(edge for edge in edges if edge <= value))


def _increase(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
