"""Whether the files of a dataset are those that its manifest names: checked once before they are used.

Remote shards are checked against their digests when they are fetched into the cache. Local ones are checked here, at
the start of whatever reads them. What was found right is noted in the cache folder under the files' sizes and times, so
that it is read only once. Damage that happens later costs the samples that it hits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from yolofleet.data.cache import CacheSettings
from yolofleet.data.cache_folder import CacheError
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.manifest import ManifestError, ShardEntry
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
        return f"{entry.tar_key} {'is missing' if size is None else f'has {size:,} bytes, not {entry.bytes:,}'}"
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
        return dataset.cache.verified(digest.hexdigest())
    except (OSError, CacheError):
        return None
