"""The load of training on the nodes of a cluster, computed from the manifest alone: no cluster, no download.

Training is simulated window by window: when a lane enters a window, its node needs the window's shards and asks for
those of the lane's next one. What a node fetches ahead evicts shards that nobody on it waits for, never others. Its
downloads share one link; all nodes wait for the slowest, because they train together. Seconds for a million shards.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.order import Deal, SampleOrder, Window

MOST_SAMPLES_MIXED = 200_000


@dataclass(frozen=True)
class NodePlan:
    """The load of one node in the simulated epochs."""

    downloaded_bytes: tuple[int, ...]
    """Bytes of shards fetched, by epoch."""
    downloads: tuple[int, ...]
    """Shards fetched, by epoch."""
    hit_share: tuple[float, ...]
    """Share of the shards that were in the cache when they were needed, by epoch."""
    peak_disk_bytes: int
    """Most bytes in the cache at any time."""
    first_batch_bytes: int
    """Bytes to download before its first micro-batch can be made."""


@dataclass(frozen=True)
class EpochPlan:
    """The load of the whole cluster."""

    nodes: tuple[NodePlan, ...]
    """One plan for each node."""
    working_bytes: int
    """Most bytes of the present and the next windows of a node's lanes: a smaller cache fetches less ahead."""
    start_seconds: float
    """Until the slowest node has its first micro-batch, at the bandwidth given."""
    stall_seconds: tuple[float, ...]
    """Time in which the step waits for shards, by epoch; the first includes the start."""
    shuffle_quality: float
    """Entropy of the shards of origin within a global batch, as a share of a full shuffle's."""
    partner_quality: float
    """The same within a micro-batch, where the partners of a mosaic come from."""


def plan_epochs(
    shard_samples: NDArray[np.int64],
    shard_bytes: NDArray[np.int64],
    *,
    node_of_lane: Sequence[Sequence[int]],
    micro_batch_size: int,
    cache_bytes: int,
    bytes_per_second: float,
    steps_per_second: float,
    deal: Deal = "epoch",
    seed: int = 0,
    num_epochs: int = 2,
    progress: Callable[[int], None] = lambda num_samples: None,
) -> EpochPlan:
    """Simulate the first epochs.

    Args:
        shard_samples: (num_shards,) samples of each shard.
        shard_bytes: (num_shards,) bytes of each shard.
        node_of_lane: For each epoch, the node that trains each lane (micro-batch of a step), numbered from 0; the last
            entry holds for all later epochs. Nodes that stay keep their caches.
        micro_batch_size: Samples that pass the network together.
        cache_bytes: Most bytes that a node's cache may hold.
        bytes_per_second: Download bandwidth of a node.
        steps_per_second: Steps that the cluster could do if it never waited for data.
        deal: How shards are dealt to lanes.
        seed: Seed of the run.
        num_epochs: Epochs to simulate; the second shows the effect of the cache.
        progress: Called with the number of samples that were simulated.
    """
    num_lanes = len(node_of_lane[0])
    order = SampleOrder(shard_samples, seed, num_lanes=num_lanes, deal=deal)
    sizes = shard_bytes.tolist()
    nodes = [_Node(sizes, cache_bytes, bytes_per_second, num_epochs) for _ in range(1 + max(map(max, node_of_lane)))]
    stalls = [0.0] * num_epochs
    entries = [(0, lane, 0) for lane in range(num_lanes)]  # (step, lane, position) at which a lane enters a window
    while entries:
        step, now = entries[0][0], entries[0][0] / steps_per_second + sum(stalls)
        entering: list[tuple[_Node, int, Window]] = []
        while entries and entries[0][0] == step:
            _, lane, position = heapq.heappop(entries)
            window = order.window(lane, position)
            if window.epoch < num_epochs:
                node = nodes[node_of_lane[min(window.epoch, len(node_of_lane) - 1)][lane]]
                entering.append((node, lane, window))
                heapq.heappush(entries, (max(step + 1, window.end // micro_batch_size), lane, window.end))
        following = [order.window(lane, window.end) for _, lane, window in entering]
        for (node, lane, window), after in zip(entering, following, strict=True):
            node.want(lane, window.shards + after.shards)
        ready = [node.fetch(window, now, must=True) for node, _, window in entering]
        for (node, _, _), after in zip(entering, following, strict=True):
            if after.epoch < num_epochs:
                node.fetch(after, now, must=False)
        if entering:
            stalls[entering[0][2].epoch] += max(0.0, max(ready) - now)
        progress(sum(window.end - window.first for _, _, window in entering))
    batch = num_lanes * micro_batch_size
    return EpochPlan(
        nodes=tuple(node.plan() for node in nodes),
        working_bytes=max(node.working_bytes for node in nodes),
        start_seconds=max(node.first_batch_bytes for node in nodes) / bytes_per_second,
        stall_seconds=tuple(stalls),
        shuffle_quality=_quality(order, shard_samples, num_lanes, micro_batch_size, range(num_lanes), batch, seed),
        partner_quality=_quality(order, shard_samples, num_lanes, micro_batch_size, range(1), micro_batch_size, seed),
    )


class _Node:
    """One node's cache and link."""

    def __init__(self, shard_bytes: list[int], cache_bytes: int, bytes_per_second: float, num_epochs: int) -> None:
        self._shard_bytes = shard_bytes
        self._cache_bytes = cache_bytes
        self._bytes_per_second = bytes_per_second
        self._ready_at: OrderedDict[int, float] = OrderedDict()  # of cached shards, the longest unused first
        self._wanted: Counter[int] = Counter()  # shards by the windows that need them
        self._windows: dict[int, tuple[int, ...]] = {}  # of each lane, the present and the next
        self._link_free_at = 0.0
        self._used_bytes = 0
        self._peak_bytes = 0
        self._downloads = [[0, 0] for _ in range(num_epochs)]  # shards and bytes
        self._needed = [[0, 0] for _ in range(num_epochs)]  # shards, and those that were there
        self.first_batch_bytes = 0
        self.working_bytes = 0

    def want(self, lane: int, shards: tuple[int, ...]) -> None:
        """Let a lane need the shards of its present and its next window, in place of those before."""
        self._wanted.subtract(self._windows.get(lane, ()))
        self._windows[lane] = shards
        self._wanted.update(shards)
        self._wanted = +self._wanted  # without those that nobody wants any more
        self.working_bytes = max(self.working_bytes, sum(self._shard_bytes[shard] for shard in self._wanted))

    def fetch(self, window: Window, now: float, *, must: bool) -> float:
        """Fetch the shards of a window, ahead of time unless they must be there; returns when all of them are."""
        for shard in window.shards:
            if must:
                self._needed[window.epoch][0] += 1
                self._needed[window.epoch][1] += shard in self._ready_at
            self._fetch(shard, window.epoch, now, must=must)
        if must and not self.first_batch_bytes:
            self.first_batch_bytes = sum(self._shard_bytes[shard] for shard in window.shards)
        return max(self._ready_at.get(shard, now) for shard in window.shards)

    def _fetch(self, shard: int, epoch: int, now: float, *, must: bool) -> None:
        """Fetch a shard unless it is there; one that is only asked for ahead evicts nothing that is wanted."""
        if shard in self._ready_at:
            self._ready_at.move_to_end(shard)
            return
        size = self._shard_bytes[shard]
        while self._ready_at and self._used_bytes + size > self._cache_bytes:
            oldest = next((other for other in self._ready_at if other not in self._wanted), None)
            if oldest is None:
                if not must:
                    return
                oldest = next(iter(self._ready_at))
            del self._ready_at[oldest]
            self._used_bytes -= self._shard_bytes[oldest]
        self._link_free_at = max(self._link_free_at, now) + size / self._bytes_per_second
        self._ready_at[shard] = self._link_free_at
        self._used_bytes += size
        self._peak_bytes = max(self._peak_bytes, self._used_bytes)
        self._downloads[epoch][0] += 1
        self._downloads[epoch][1] += size

    def plan(self) -> NodePlan:
        """Return the load of the node."""
        return NodePlan(
            downloaded_bytes=tuple(amount for _, amount in self._downloads),
            downloads=tuple(count for count, _ in self._downloads),
            hit_share=tuple(hits / needed if needed else 1.0 for needed, hits in self._needed),
            peak_disk_bytes=self._peak_bytes,
            first_batch_bytes=self.first_batch_bytes,
        )


def _quality(
    order: SampleOrder,
    shard_samples: NDArray[np.int64],
    num_lanes: int,
    micro_batch_size: int,
    lanes: range,
    batch: int,
    seed: int,
) -> float:
    """Return the mean entropy of the shards in batches of some lanes, as a share of a full shuffle's.

    Steps are drawn from the first ten epochs.
    """
    generator = np.random.default_rng(seed)
    num_steps = max(1, int(shard_samples.sum()) // (num_lanes * micro_batch_size))
    steps = generator.integers(0, 10 * num_steps, max(1, min(64, MOST_SAMPLES_MIXED // batch)))
    drawn = [
        [order.locate(lane, step * micro_batch_size + slot)[0] for lane in lanes for slot in range(micro_batch_size)]
        for step in steps.tolist()
    ]
    shares = shard_samples / shard_samples.sum()
    shuffled = generator.choice(len(shares), size=(64, batch), p=shares).tolist()
    full_bits = float(np.mean([_entropy_bits(batch) for batch in shuffled]))
    return float(np.mean([_entropy_bits(batch) for batch in drawn])) / full_bits if full_bits else 1.0


def _entropy_bits(shards: list[int]) -> float:
    counts = np.array(list(Counter(shards).values())) / len(shards)
    return float(-(counts * np.log2(counts)).sum())
