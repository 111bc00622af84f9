"""The load of training on the nodes of a cluster, computed from the manifest alone: no cluster, no download.

The order of training is simulated window by window. Each node fetches the shards of the next window ahead of time; its
workers open the shards of their own micro-batches once a window and hold them open; the least recently used shard is
evicted. The cost is that of the order itself: seconds for COCO, minutes at 10^9 samples.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.order import SampleOrder


@dataclass(frozen=True)
class NodePlan:
    """The load of one node in the simulated epochs."""

    downloaded_bytes: tuple[int, ...]
    """Bytes fetched, by epoch."""
    hit_share: tuple[float, ...]
    """Share of the shards that were in the cache when a worker opened them, by epoch."""
    peak_disk_bytes: int
    """Most bytes in the cache at any time."""
    first_batch_bytes: int
    """Bytes to download before its first micro-batch can be made."""


@dataclass(frozen=True)
class EpochPlan:
    """The load of the whole cluster."""

    nodes: tuple[NodePlan, ...]
    """One plan for each node."""
    window_bytes: int
    """Most bytes of two consecutive windows: a smaller cache fetches shards again."""
    start_seconds: float
    """Until the slowest node has its first micro-batch, at the bandwidth given."""
    shuffle_quality: float
    """Entropy of the shards of origin within a global batch, as a share of a full shuffle's."""


def plan_epochs(
    shard_samples: NDArray[np.int64],
    shard_bytes: NDArray[np.int64],
    *,
    worker_of_micro_batch: Sequence[int],
    node_of_worker: Sequence[int],
    micro_batch_size: int,
    cache_bytes: int,
    bytes_per_second: float,
    seed: int = 0,
    num_epochs: int = 2,
    progress: Callable[[int], None] = lambda num_samples: None,
) -> EpochPlan:
    """Simulate the first epochs.

    Args:
        shard_samples: (num_shards,) samples of each shard.
        shard_bytes: (num_shards,) bytes of each shard.
        worker_of_micro_batch: The worker that makes each micro-batch of a step, numbered from 0.
        node_of_worker: The node of each worker, numbered from 0.
        micro_batch_size: Samples that pass the network together.
        cache_bytes: Most bytes that a node's cache may hold.
        bytes_per_second: Download bandwidth of a node.
        seed: Seed of the run.
        num_epochs: Epochs to simulate; the second shows the effect of the cache.
        progress: Called with the number of samples that were simulated.
    """
    order = SampleOrder(shard_samples, seed)
    workers = np.asarray(worker_of_micro_batch, dtype=np.int64)  # (micro-batches of a step,)
    owners = np.asarray(node_of_worker, dtype=np.int64)[workers]
    nodes = [_Node(shard_bytes, cache_bytes, num_epochs) for _ in range(int(owners.max()) + 1)]
    batch = len(owners) * micro_batch_size
    rest = np.empty(0, dtype=np.int64)
    entropies: list[NDArray[np.float64]] = []
    window_bytes = 0
    for epoch in range(num_epochs):
        for window in range(order.num_windows(epoch)):
            following = order.window_after(epoch, window)
            both = ((epoch, window), following)
            ahead = [(shard, position[0]) for position in both for shard in order.window_shards(*position)]
            window_bytes = max(window_bytes, int(shard_bytes[list({shard for shard, _ in ahead})].sum()))
            shards, _ = order.window_samples(epoch, window)
            pending = np.concatenate([rest, shards])
            steps, rest = np.split(pending, [len(pending) // batch * batch])
            micro_batches = steps.reshape(-1, len(owners), micro_batch_size)
            opened = workers[:, None] * len(shard_samples) + micro_batches  # (steps, micro-batches, samples)
            entropies.append(_entropies_bits(steps.reshape(-1, batch)))
            for number, node in enumerate(nodes):
                node.walk(opened[:, owners == number], ahead, epoch)
            progress(len(shards))
    shuffled = np.concatenate(entropies)
    full_bits = _full_shuffle_bits(shard_samples, batch, seed)
    return EpochPlan(
        nodes=tuple(node.plan() for node in nodes),
        window_bytes=window_bytes,
        start_seconds=max(node.first_batch_bytes for node in nodes) / bytes_per_second,
        shuffle_quality=float(shuffled.mean()) / full_bits if len(shuffled) else 1.0,
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

    def walk(self, opened: NDArray[np.int64], ahead: list[tuple[int, int]], epoch: int) -> None:
        """Make the micro-batches of one window.

        Args:
            opened: (steps, micro-batches, samples) worker x number of shards + shard, of every sample of this node.
            ahead: Shards of this window and the next, fetched in the background, and the epoch of each.
            epoch: Which epoch the window belongs to.
        """
        num_first = 0
        if not self._opened[0] and opened.size:  # nothing could be fetched ahead of the very first step
            num_first = opened[0].size
            self._open_all(opened[0], epoch)
            self.first_batch_bytes = self._used_bytes
        for shard, needed_in in ahead:
            if needed_in < len(self._downloaded):
                self._fetch(shard, needed_in)
        self._open_all(opened.reshape(-1)[num_first:], epoch)

    def _open_all(self, opened: NDArray[np.int64], epoch: int) -> None:
        """Open shards in order, each once for each worker."""
        pairs, first_uses = np.unique(opened, return_index=True)
        for pair in pairs[np.argsort(first_uses)].tolist():
            shard = pair % len(self._shard_bytes)
            self._opened[epoch] += 1
            self._hits[epoch] += shard in self._cached
            self._fetch(shard, epoch)

    def _fetch(self, shard: int, epoch: int) -> None:
        """Fetch a shard into the cache unless it is there; either way it is the last to be evicted."""
        if shard in self._cached:
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
        """Return the load of the node."""
        shares = (hits / opened if opened else 1.0 for hits, opened in zip(self._hits, self._opened, strict=True))
        return NodePlan(tuple(self._downloaded), tuple(shares), self._peak_bytes, self.first_batch_bytes)


def _entropies_bits(batches: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return for each of (n, samples) batches of shard numbers the entropy of the shards in it."""
    num_batches, batch = batches.shape
    if not num_batches:
        return np.empty(0)
    ordered = np.sort(batches, axis=1)
    begins = np.ones(ordered.shape, dtype=bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.flatnonzero(begins)
    shares = np.diff(starts, append=batches.size) / batch
    owners = starts // batch
    bits = -shares * np.log2(shares)
    return np.bincount(owners, weights=bits, minlength=num_batches).astype(np.float64)


def _full_shuffle_bits(shard_samples: NDArray[np.int64], batch: int, seed: int) -> float:
    """Return the mean entropy of batches drawn from all samples; 1 where there is only one shard to draw from."""
    generator = np.random.default_rng(seed)
    shares = shard_samples / shard_samples.sum()
    drawn = generator.choice(len(shares), size=(64, batch), p=shares)
    return float(_entropies_bits(drawn).mean()) or 1.0
