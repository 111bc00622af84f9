"""What an epoch will ask of the nodes of a cluster, computed from the manifest alone: no cluster, no download.

The same order that training follows is walked through step by step; each node reads the samples of its micro-batches,
through a shard cache that evicts what was used longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.order import SampleOrder


@dataclass(frozen=True)
class NodePlan:
    """What one node does in the epochs that were simulated.

    Attributes:
        downloaded_bytes: Bytes fetched, by epoch.
        hit_share: Share of the shards that were found in the cache whenever one was opened, by epoch.
        peak_disk_bytes: Most bytes in the cache at any time.
        first_batch_bytes: Bytes that must come before its first micro-batch can be made.
    """

    downloaded_bytes: tuple[int, ...]
    hit_share: tuple[float, ...]
    peak_disk_bytes: int
    first_batch_bytes: int


@dataclass(frozen=True)
class EpochPlan:
    """What the whole cluster does.

    Attributes:
        nodes: One plan for each node.
        start_seconds: Until the slowest node has its first micro-batch, at the bandwidth given.
        shuffle_quality: Entropy of the shards of origin within a global batch, as a share of a full shuffle's.
    """

    nodes: tuple[NodePlan, ...]
    start_seconds: float
    shuffle_quality: float


def plan_epochs(
    shard_samples: NDArray[np.int64],
    shard_bytes: NDArray[np.int64],
    *,
    num_nodes: int,
    global_batch_size: int,
    micro_batch_size: int,
    cache_bytes: int,
    bytes_per_second: float,
    seed: int = 0,
    num_epochs: int = 2,
) -> EpochPlan:
    """Simulate the first epochs.

    Args:
        shard_samples: (num_shards,) samples of each shard.
        shard_bytes: (num_shards,) bytes of each shard.
        num_nodes: Nodes, each with a cache of its own.
        global_batch_size: Samples of a step.
        micro_batch_size: Samples that pass the network together; a node owns whole micro-batches.
        cache_bytes: What a node's cache may hold.
        bytes_per_second: What a node can download.
        seed: Seed of the run.
        num_epochs: Epochs to simulate; the second shows what the cache is worth.
    """
    order = SampleOrder(shard_samples, seed)
    per_step = global_batch_size // micro_batch_size
    nodes = [_Node(shard_bytes, cache_bytes, num_epochs) for _ in range(num_nodes)]
    steps = -(-order.num_samples * num_epochs // global_batch_size)
    entropies: list[float] = []
    for step in range(steps):
        first = step * global_batch_size
        shards = np.array([order.place(first + place).shard for place in range(global_batch_size)])
        entropies.append(_entropy_bits(shards))
        epoch = min(first // order.num_samples, num_epochs - 1)
        owned = shards.reshape(per_step, micro_batch_size)
        for index in range(per_step):
            nodes[index * num_nodes // per_step].open_all(np.unique(owned[index]), epoch)
    return EpochPlan(
        nodes=tuple(node.plan() for node in nodes),
        start_seconds=max(node.first_batch_bytes for node in nodes) / bytes_per_second,
        shuffle_quality=float(np.mean(entropies)) / _full_shuffle_bits(shard_samples, global_batch_size, seed),
    )


class _Node:
    """One node's cache."""

    def __init__(self, shard_bytes: NDArray[np.int64], cache_bytes: int, num_epochs: int) -> None:
        self._shard_bytes = shard_bytes
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[int, int] = OrderedDict()  # shard -> bytes, the longest unused first
        self._used_bytes = 0
        self._peak_bytes = 0
        self._downloaded = [0] * num_epochs
        self._opened = [0] * num_epochs
        self._hits = [0] * num_epochs
        self.first_batch_bytes = 0

    def open_all(self, shards: NDArray[np.int64], epoch: int) -> None:
        """Open the shards of one micro-batch."""
        is_first = not self._cached
        for shard in shards.tolist():
            self._open(shard, epoch)
        if is_first:
            self.first_batch_bytes = self._used_bytes

    def _open(self, shard: int, epoch: int) -> None:
        self._opened[epoch] += 1
        if shard in self._cached:
            self._hits[epoch] += 1
            self._cached.move_to_end(shard)
            return
        size = int(self._shard_bytes[shard])
        while self._cached and self._used_bytes + size > self._cache_bytes:
            self._used_bytes -= self._cached.popitem(last=False)[1]
        self._cached[shard] = size
        self._used_bytes += size
        self._downloaded[epoch] += size
        self._peak_bytes = max(self._peak_bytes, self._used_bytes)

    def plan(self) -> NodePlan:
        """Return what the node did."""
        shares = (hits / opened if opened else 1.0 for hits, opened in zip(self._hits, self._opened, strict=True))
        return NodePlan(tuple(self._downloaded), tuple(shares), self._peak_bytes, self.first_batch_bytes)


def _entropy_bits(shards: NDArray[np.int64]) -> float:
    _, counts = np.unique(shards, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _full_shuffle_bits(shard_samples: NDArray[np.int64], batch: int, seed: int) -> float:
    """Return the mean entropy of batches drawn from all samples; 1 where there is only one shard to draw from."""
    generator = np.random.default_rng(seed)
    shares = shard_samples / shard_samples.sum()
    drawn = [_entropy_bits(generator.choice(len(shares), size=batch, p=shares)) for _ in range(64)]
    return float(np.mean(drawn)) or 1.0
