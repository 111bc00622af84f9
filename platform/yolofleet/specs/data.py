"""The data of a job: its shards, their cache, and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from yolofleet.specs.base import Bytes, Spec, Url


class CacheSpec(Spec):
    """The node's shard cache on local disk."""

    path: Url
    """Folder of the cache."""
    max_bytes: Bytes = 100 * 10**9
    """Most bytes that it holds; the least recently used shards are evicted first."""


class DataSpec(Spec):
    """Which shards to train on and to evaluate on."""

    train: Url
    """Folder or s3:// URL of the training shards."""
    val: Url
    """Folder or s3:// URL of the validation shards."""
    image_size: Annotated[int, Field(ge=32)] = 640
    """Side of the square that the network sees, in pixels; a multiple of the model's largest stride."""
    cache: CacheSpec | None = None
    """Shard cache for remote data; without one, shards are kept in the system's temporary folder."""
    deal: Literal["auto", "fixed", "epoch"] = "auto"
    """Shards are dealt to the micro-batches of a step once (fixed: a node reads the same part of the dataset in every
    epoch) or anew every epoch (the best shuffle). auto: fixed if a node's cache cannot hold the training set."""
    fetchers: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"
    """Shards, or ranges of 16 MiB of them, that a node fetches from remote storage at a time before they are needed.
    Each of the node's workers runs its share of them, at least one; a worker that needs a shard now fetches it besides.
    auto begins with 4 a node and runs more, up to 32, as long as they bring bandwidth."""
    loader_threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads or processes that decode and augment, per worker."""
    loader: Literal["threads", "processes", "auto"] = "auto"
    """What those are: threads share the interpreter lock, processes take longer to start; 'auto' takes processes where
    that many threads would get in each other's way."""
    augment_on: Literal["host", "device"] = "host"
    """Where colour changes and flips are made: by the loader's threads, or for a whole micro-batch where the network
    computes. What is drawn is the same, and so are the images but for rounding to whole levels."""
    max_pixels: Annotated[int, Field(ge=1, le=2**30)] = 100_000_000
    """Images with more pixels are skipped in training and in evaluation; the limit of a build by default."""
    most_skipped_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """A run that had to skip more than this share of its samples stops."""
