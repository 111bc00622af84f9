"""The drawn dataset as shards on an S3 server (fixture ``s3``), read through a cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from yolofleet.data.cache import ShardCache
from yolofleet.data.cache_folder import CacheLocks, CacheSettings
from yolofleet.data.dataset import ShardDataset

URL = "s3://data/drawn"


def opened(cache: Path, *, patience_seconds: float = 20.0, **settings: Any) -> ShardDataset:
    """Open the dataset with a cache."""
    dataset = ShardDataset(URL, CacheSettings(path=cache, patience_seconds=patience_seconds, **settings))
    dataset.storage.patience_seconds = 1.0  # type: ignore[attr-defined]  # of the single call; the cache has its own
    return dataset


def fetch(cache: ShardCache, dataset: ShardDataset, shard: int) -> None:
    """Fetch a shard that is needed now."""
    os.close(cache.open(dataset.storage, dataset.manifest.shards[shard]))


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, and fail where it never does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


def cached_bytes(cache: Path) -> int:
    """Return the bytes of all objects in the folder of a cache, while nothing is evicted or reserved."""
    sizes: dict[str, int] = {}
    with CacheLocks(cache / "lock").making_room():
        for path in cache.glob("*.*"):
            with suppress(FileNotFoundError):  # it gets its name at this moment
                sizes[path.stem] = path.stat().st_size
    return sum(sizes.values())


READER = f"""
import hashlib, sys
from pathlib import Path
from yolofleet.data.cache_folder import CacheSettings
from yolofleet.data.dataset import ShardDataset
cache, max_bytes, rounds, ahead = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
settings = CacheSettings(path=cache, max_bytes=max_bytes, fetchers=8)
dataset, digest = ShardDataset("{URL}", settings), hashlib.sha256()
num_shards = len(dataset.manifest.shards)
for _ in range(rounds):
    for number in range(len(dataset)):
        shard, row = dataset.locate(number)
        if ahead and row == 0:
            dataset.prefetch(range(shard, min(shard + ahead, num_shards)))
        digest.update(dataset.read(number).image)
        print("sample", flush=True)
    dataset._descriptors.clear()  # open every shard again, so that the cache is asked in each round
print(digest.hexdigest(), flush=True)
"""


def start_reader(cache: Path, max_bytes: int = 10**9, *, rounds: int = 1, ahead: int = 0) -> subprocess.Popen[str]:
    """Start a process that reads all samples, and fetches shards ahead."""
    platform = str(Path(__file__).parents[2] / "platform")
    command = [sys.executable, "-c", READER, *map(str, (cache, max_bytes, rounds, ahead))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": platform})
