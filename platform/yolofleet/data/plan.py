"""The load of training on the nodes of a cluster, computed from the manifest alone: no cluster, no download.

Training is simulated window by window: when a lane enters a window, its node needs the window's shards and asks for
those of the lane's next ones. What a node fetches ahead evicts shards that nobody on it waits for, never others. Its
downloads share one link, and all nodes share the object store; they wait for the slowest, because they train together.
A minute for a million shards.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.cache_folder import RANGE_BYTES
from yolofleet.data.order import Deal, SampleOrder, Window

MOST_SAMPLES_MIXED = 200_000


@dataclass(frozen=True)
class StoreLimits:
    """What an object store gives to all nodes together."""

    bytes_per_second: float = math.inf
    """Bandwidth."""
    requests_per_second: float = math.inf
    """Requests; S3 answers 5,500 for each prefix."""


@dataclass(frozen=True)
class NodePlan:
    """The load of one node in the simulated epochs."""

    downloaded_bytes: tuple[int, ...]
    """Bytes of shards fetched, by epoch."""
    requests: tuple[int, ...]
    """Requests for shards and their indexes, by epoch."""
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
    store: StoreLimits = StoreLimits(),
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
        store: What the object store gives to all nodes together.
        deal: How shards are dealt to lanes.
        seed: Seed of the run.
        num_epochs: Epochs to simulate; the second shows the effect of the cache.
        progress: Called with the number of samples that were simulated.
    """
    num_lanes = len(node_of_lane[0])
    order = SampleOrder(shard_samples, seed, num_lanes=num_lanes, deal=deal)
    num_nodes = 1 + max(map(max, node_of_lane))
    bandwidth = min(bytes_per_second, store.bytes_per_second / num_nodes)
    requests = 1 + -(-shard_bytes // RANGE_BYTES)  # one for the index
    seconds = np.maximum(shard_bytes / bandwidth, requests * num_nodes / store.requests_per_second)
    shards = _Shards(shard_bytes.tolist(), requests.tolist(), seconds.tolist())
    nodes = [_Node(shards, cache_bytes, num_epochs) for _ in range(num_nodes)]

    def owner(lane: int, window: Window) -> int:
        return node_of_lane[min(window.epoch, len(node_of_lane) - 1)][lane]

    stalls = [0.0] * num_epochs
    entries = [(0, lane, 0) for lane in range(num_lanes)]  # (step, lane, position) at which a lane enters a window
    while entries:
        step, now = entries[0][0], entries[0][0] / steps_per_second + sum(stalls)
        entering: list[tuple[int, Window]] = []
        while entries and entries[0][0] == step:
            _, lane, position = heapq.heappop(entries)
            window = order.window(lane, position)
            if window.epoch < num_epochs:
                entering.append((lane, window))
                heapq.heappush(entries, (max(step + 1, window.end // micro_batch_size), lane, window.end))
        for lane, window in entering:
            after = order.windows_after(lane, window)
            mine = [each for each in after if each.epoch < num_epochs and owner(lane, each) == owner(lane, window)]
            nodes[owner(lane, window)].ask(lane, [window, *mine], now)
        ready = max((nodes[owner(lane, window)].read(window, now) for lane, window in entering), default=now)
        if entering:
            stalls[entering[0][1].epoch] += ready - now
        progress(sum(window.end - window.first for _, window in entering))
    batch = num_lanes * micro_batch_size
    return EpochPlan(
        nodes=tuple(node.plan() for node in nodes),
        working_bytes=max(node.working_bytes for node in nodes),
        start_seconds=max(node.first_batch_bytes for node in nodes) / bytes_per_second,
        stall_seconds=tuple(stalls),
        shuffle_quality=_quality(order, shard_samples, num_lanes, micro_batch_size, range(num_lanes), batch, seed),
        partner_quality=_quality(order, shard_samples, num_lanes, micro_batch_size, range(1), micro_batch_size, seed),
    )


@dataclass(frozen=True)
class _Shards:
    """What it takes to fetch each shard."""

    num_bytes: list[int]
    requests: list[int]
    seconds: list[float]


class _Node:
    """One node's cache, and its way to the object store."""

    def __init__(self, shards: _Shards, cache_bytes: int, num_epochs: int) -> None:
        self._shards = shards
        self._shard_bytes = shards.num_bytes
        self._cache_bytes = cache_bytes
        self._ready_at: OrderedDict[int, float] = OrderedDict()  # of cached shards, the longest unused first
        self._asked: list[tuple[int, int, int, int]] = []  # heap of (first position of the window, lane, shard, epoch)
        self._asked_until: dict[int, int] = {}  # position, by lane
        self._unread: Counter[int] = Counter()  # shards asked for, by the windows that did not begin yet
        self._lane_shards: dict[int, set[int]] = {}  # of the present window and of those asked for
        self._working: Counter[int] = Counter()  # these shards, by lanes
        self._working_bytes = 0
        self._link_free_at = 0.0
        self._used_bytes = 0
        self._peak_bytes = 0
        self._downloads = [[0, 0] for _ in range(num_epochs)]  # requests and bytes
        self._needed = [[0, 0] for _ in range(num_epochs)]  # shards, and those that were there
        self.first_batch_bytes = 0
        self.working_bytes = 0

    def ask(self, lane: int, windows: list[Window], now: float) -> None:
        """Ask for the shards of a lane's present window and of those after it; what comes first is fetched first."""
        self._fetch_until(now)
        for window in windows:
            if window.first >= self._asked_until.get(lane, 0):
                self._asked_until[lane] = window.end
                for shard in window.shards:
                    self._unread[shard] += 1
                    heapq.heappush(self._asked, (window.first, lane, shard, window.epoch))
        before, now_read = self._lane_shards.get(lane, set()), {shard for each in windows for shard in each.shards}
        self._lane_shards[lane] = now_read
        for shard in before - now_read:
            self._working[shard] -= 1
            self._working_bytes -= self._shard_bytes[shard] if self._working[shard] == 0 else 0
        for shard in now_read - before:
            self._working_bytes += self._shard_bytes[shard] if self._working[shard] == 0 else 0
            self._working[shard] += 1
        self.working_bytes = max(self.working_bytes, self._working_bytes)

    def read(self, window: Window, now: float) -> float:
        """Begin to read a window; returns the time at which all of its shards are there."""
        ready = now
        for shard in window.shards:
            self._needed[window.epoch][0] += 1
            self._needed[window.epoch][1] += self._ready_at.get(shard, math.inf) <= now
            if shard not in self._ready_at:
                self._make_room(shard, must=True)
                self._download(shard, window.epoch, now)
            self._ready_at.move_to_end(shard)
            self._unread[shard] -= 1
            ready = max(ready, self._ready_at[shard])
        if not self.first_batch_bytes:
            self.first_batch_bytes = sum(self._shard_bytes[shard] for shard in window.shards)
        return ready

    def _fetch_until(self, now: float) -> None:
        """Fetch what was asked for, as long as the link is free before now and there is room."""
        while self._asked and self._link_free_at < now:
            _, _, shard, epoch = self._asked[0]
            if shard not in self._ready_at and self._unread[shard] > 0:
                if not self._make_room(shard, must=False):
                    return
                self._download(shard, epoch, self._link_free_at)
            heapq.heappop(self._asked)

    def _make_room(self, shard: int, *, must: bool) -> bool:
        """Evict shards until another one fits, as the cache does: those that nobody wants, the longest unused first.

        Only for a shard that must be there: those that are wanted, too; what was never read at last, the newest first.
        """
        while self._ready_at and self._used_bytes + self._shard_bytes[shard] > self._cache_bytes:
            evicted = next((other for other in self._ready_at if not self._working[other]), None)
            if evicted is None:
                if not must:
                    return False
                read = (other for other in self._ready_at if self._unread[other] <= 0)
                evicted = next(read, next(reversed(self._ready_at)))
            del self._ready_at[evicted]
            self._used_bytes -= self._shard_bytes[evicted]
        return True

    def _download(self, shard: int, epoch: int, now: float) -> None:
        self._link_free_at = max(self._link_free_at, now) + self._shards.seconds[shard]
        self._ready_at[shard] = self._link_free_at
        self._used_bytes += self._shard_bytes[shard]
        self._peak_bytes = max(self._peak_bytes, self._used_bytes)
        self._downloads[epoch][0] += self._shards.requests[shard]
        self._downloads[epoch][1] += self._shard_bytes[shard]

    def plan(self) -> NodePlan:
        """Return the load of the node."""
        return NodePlan(
            downloaded_bytes=tuple(amount for _, amount in self._downloads),
            requests=tuple(count for count, _ in self._downloads),
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
