"""The order of samples in lanes: one endless stream for each micro-batch slot of a step, computed from its position.

A step has L micro-batches; micro-batch i of every step is lane i. All shards, in an order keyed by the seed, are dealt
to the lanes in contiguous parts, cut at sample granularity where a shard crosses a border: lane i of L holds samples
``i * N // L`` to ``(i + 1) * N // L``, so lanes differ by at most one sample. A lane reads its part again and again;
each pass over it is one of the lane's epochs, shuffled anew: first its pieces of shards, then the samples within each
window of a few pieces that follow each other. So a node that owns some lanes reads their shards only, nearly
sequentially, and only the present window of a lane is ever computed.

The deal is ``fixed`` (a node keeps its part, and nothing is downloaded twice) or made anew every ``epoch``. With few
shards a lane would mix too few of them, so in the deal of every epoch neighbouring lanes share their parts: as a group
of lanes that holds a window's shards at least, shuffled together, then cut into lanes.

Random numbers come from generators that are a pure function of a seed and of their purpose. Philox turns a key and a
counter into random bits, so no generator is advanced, saved or restored: it makes no difference which process draws, in
which order, or how often the run was stopped.

With image weights, images with rare classes are drawn more often, from the training set's annotations alone. An image's
weight is the sum over its boxes of the inverse frequency of their classes. The published option also multiplies each
class by (1 - AP)^2 of the newest evaluation; here no sample may depend on the course of the run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

WINDOW_SHARDS = 8
FEWEST_WINDOWS_KEPT = 4
Deal = Literal["fixed", "epoch"]
Key = TypeVar("Key")
Value = TypeVar("Value")


class Purpose(IntEnum):
    """Purposes of random numbers; each has numbers of its own."""

    SHARD_ORDER = 1
    SAMPLE_ORDER = 2
    AUGMENTATION = 3
    SYNTHESIS = 4
    IMAGE_SIZE = 5
    IMAGE_WEIGHTS = 6
    ANCHORS = 7
    PIECE_ORDER = 8


def keyed_generator(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """Return the generator for a seed, a purpose and up to three numbers (such as epoch, group and window)."""
    first, second, third = (*numbers, 0, 0, 0)[:3]
    # The counter's lowest word is left to the generator itself: 2^64 draws before it would meet a neighbour.
    counter = np.array([0, int(purpose), second, third], dtype=np.uint64)
    key = np.array([seed % 2**64, first % 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw_counts(weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return how often each sample is drawn in an epoch: (num_samples,), in all as many as there are samples.

    Systematic sampling: each sample is drawn its weight's number of times, rounded down or up by one random number
    for the epoch, so rare images come as often as their weight says in every epoch, not only on average.
    """
    num_samples = len(weights)
    ends = np.cumsum(weights) * (num_samples / weights.sum())
    ends[-1] = num_samples  # rounding must not cost the last draw
    start = float(keyed_generator(seed, Purpose.IMAGE_WEIGHTS, epoch).random())
    # A start close to 1 rounds up to it: that must not add a draw.
    marks = np.minimum(np.floor(ends + start).astype(np.int64), num_samples)
    return np.asarray(np.diff(marks, prepend=0), dtype=np.int64)


@dataclass(frozen=True)
class Window:
    """The shards that a lane reads for a while."""

    first: int
    """Position in the lane of its first sample."""
    end: int
    """Position in the lane of the first sample after it."""
    epoch: int
    """Pass of the lane over its part, from 0."""
    shards: tuple[int, ...]
    """Shards that its samples come from."""


@dataclass(frozen=True)
class _Dealt:
    """All shards in the order in which they are dealt."""

    shards: NDArray[np.int64]
    """(num_shards,) shard numbers; those of which no sample is drawn are left out."""
    ends: NDArray[np.int64]
    """(num_shards,) number of samples up to the end of each."""
    draw_counts: NDArray[np.int64] | None
    """(N,) how often each sample is drawn; None draws each once."""


@dataclass(frozen=True)
class _Pieces:
    """The pieces of shards that a group of lanes reads in one epoch, in the order of reading."""

    shards: NDArray[np.int64]
    """(num_pieces,) shard numbers."""
    begins: NDArray[np.int64]
    """(num_pieces,) first sample of each piece, counted within its shard's samples as they are drawn."""
    sizes: NDArray[np.int64]
    """(num_pieces,) samples of each piece."""
    window_pieces: NDArray[np.int64]
    """(num_windows + 1,) number of each window's first piece, and num_pieces at the end."""
    window_starts: NDArray[np.int64]
    """(num_windows + 1,) position of each window's first sample, and the number of samples at the end."""
    draw_counts: NDArray[np.int64] | None
    """That of the deal."""


class SampleOrder:
    """The order of the samples of a dataset. Pure: it caches only values that it would compute again.

    Args:
        shard_sizes: (num_shards,) samples of each shard.
        seed: Seed of the run.
        num_lanes: Micro-batches of a step (L).
        deal: Whether shards are dealt to the lanes once (``fixed``) or anew every ``epoch``.
        window_shards: Shards in a window at least, where a lane has so many; more of them shuffle better, and need more
            disk at a time.
        weights: (N,) how often each sample is drawn an epoch in the long run; None draws each once. An epoch stays N
            samples long; memory is then a few numbers a sample.
    """

    def __init__(
        self,
        shard_sizes: NDArray[np.int64],
        seed: int,
        *,
        num_lanes: int,
        deal: Deal = "epoch",
        window_shards: int = WINDOW_SHARDS,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._seed, self._deal, self._window_shards, self._weights = seed, deal, window_shards, weights
        num_samples, num_shards = int(self._sizes.sum()), int(np.count_nonzero(self._sizes))
        # With fewer samples than lanes, the whole dataset is dealt several times, so that no lane stays empty.
        self._num_passes = -(-num_lanes // num_samples)
        self._length = num_samples * self._num_passes
        self._num_lanes = num_lanes
        self._num_groups = num_lanes
        if deal == "epoch":
            self._num_groups = min(num_lanes, max(1, num_shards // window_shards))
        # A run must not wait for a whole window of shards before its first step: the first windows grow, no faster than
        # a link brings them that is twice as fast as training.
        self._grows = num_shards > window_shards
        self._lock = threading.Lock()
        self._dealt: OrderedDict[int, _Dealt] = OrderedDict()
        self._pieces: OrderedDict[tuple[int, int], _Pieces] = OrderedDict()
        self._samples: OrderedDict[tuple[int, int, int], tuple[NDArray[np.int32], NDArray[np.int32]]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        dealing: dict[str, Any] = {"num_lanes": self._num_lanes, "deal": self._deal, "weights": self._weights}
        again = partial(SampleOrder, **dealing, window_shards=self._window_shards)
        return again, (self._sizes, self._seed)

    def lane_length(self, lane: int) -> int:
        """Return the number of samples of a lane's part: those of one epoch of the lane."""
        return self._border(lane + 1) - self._border(lane)

    def locate(self, lane: int, position: int) -> tuple[int, int]:
        """Return shard and row of sample ``position`` of a lane's endless stream."""
        with self._lock:
            group, epoch, offset = self._find(lane, position)
            pieces, window = self._window_of(group, epoch, offset)
            shards, rows = self._window_samples(group, epoch, window)
        slot = offset - int(pieces.window_starts[window])
        return int(shards[slot]), int(rows[slot])

    def window(self, lane: int, position: int) -> Window:
        """Return the window that holds sample ``position`` of a lane; ``window(lane, end)`` is the one after it."""
        with self._lock:
            group, epoch, offset = self._find(lane, position)
            pieces, number = self._window_of(group, epoch, offset)
        length = self.lane_length(lane)
        lane_begin = offset - position % length  # where the lane's part begins among the group's samples
        begin, end = pieces.window_starts[number : number + 2].tolist()
        first, last = pieces.window_pieces[number : number + 2].tolist()
        return Window(
            position - (offset - max(begin, lane_begin)),
            position + (min(end, lane_begin + length) - offset),
            epoch,
            tuple(pieces.shards[first:last].tolist()),
        )

    def windows_after(self, lane: int, window: Window) -> list[Window]:
        """Return what to fetch while a lane reads a window: the next one, or several where they are small."""
        found = [self.window(lane, window.end)]
        while sum(len(each.shards) for each in found) < self._window_shards and found[-1].epoch == window.epoch:
            found.append(self.window(lane, found[-1].end))
        return found

    def _border(self, lane: int) -> int:
        """Return the first sample of a lane in the order of the deal."""
        return lane * self._length // self._num_lanes

    def _find(self, lane: int, position: int) -> tuple[int, int, int]:
        """Return the group of a lane, the epoch of a position, and where that is among the group's samples."""
        epoch, within = divmod(position, self.lane_length(lane))
        group = ((lane + 1) * self._num_groups - 1) // self._num_lanes
        return group, epoch, self._border(lane) - self._border(self._first_lane(group)) + within

    def _first_lane(self, group: int) -> int:
        return group * self._num_lanes // self._num_groups

    def _window_of(self, group: int, epoch: int, offset: int) -> tuple[_Pieces, int]:
        """Return the pieces of a group and the window that holds one of its samples."""
        pieces = _remembered(
            self._pieces, (group, epoch), lambda: self._cut(group, epoch), 2 * self._num_groups + FEWEST_WINDOWS_KEPT
        )
        return pieces, int(np.searchsorted(pieces.window_starts, offset, side="right")) - 1

    def _cut(self, group: int, epoch: int) -> _Pieces:
        """Cut a group's part out of the deal, shuffle its pieces and put windows around them."""
        number = epoch if self._deal == "epoch" or self._weights is not None else 0
        dealt = _remembered(self._dealt, number, lambda: self._deal_shards(number), 2)
        begin, end = self._border(self._first_lane(group)), self._border(self._first_lane(group + 1))
        first = int(np.searchsorted(dealt.ends, begin, side="right"))
        last = int(np.searchsorted(dealt.ends, end, side="left"))
        shards, ends = dealt.shards[first : last + 1], dealt.ends[first : last + 1]
        shard_begins = np.concatenate([dealt.ends[first - 1 : first] if first else [0], ends[:-1]])
        begins = np.maximum(begin, shard_begins)
        order = keyed_generator(self._seed, Purpose.PIECE_ORDER, epoch, group).permutation(len(shards))
        sizes = (np.minimum(end, ends) - begins)[order]
        windows = _window_edges(len(shards), self._window_shards, grows=self._grows and epoch == 0)
        return _Pieces(
            shards[order],
            (begins - shard_begins)[order],
            sizes,
            windows,
            np.concatenate([[0], np.cumsum(sizes)])[windows],
            dealt.draw_counts,
        )

    def _deal_shards(self, number: int) -> _Dealt:
        times = None if self._weights is None else draw_counts(self._weights, self._seed, number)
        sizes = self._sizes if times is None else _sum_by_shard(times, self._sizes)
        key = number if self._deal == "epoch" else 0
        passes = range(key * self._num_passes, (key + 1) * self._num_passes)
        orders = [keyed_generator(self._seed, Purpose.SHARD_ORDER, each).permutation(len(sizes)) for each in passes]
        shards = np.concatenate(orders)
        shards = shards[sizes[shards] > 0]
        return _Dealt(shards, np.cumsum(sizes[shards]), times)

    def _window_samples(self, group: int, epoch: int, window: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return shard and row of every sample of a window, (n,) each, in order."""
        most = 2 * self._num_lanes + FEWEST_WINDOWS_KEPT
        return _remembered(self._samples, (group, epoch, window), lambda: self._shuffle(group, epoch, window), most)

    def _shuffle(self, group: int, epoch: int, window: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        pieces = self._pieces[group, epoch]
        number = slice(int(pieces.window_pieces[window]), int(pieces.window_pieces[window + 1]))
        rows = [
            self._draw_rows(shard, pieces.draw_counts)[begin : begin + size]
            for shard, begin, size in zip(
                pieces.shards[number].tolist(),
                pieces.begins[number].tolist(),
                pieces.sizes[number].tolist(),
                strict=True,
            )
        ]
        order = keyed_generator(self._seed, Purpose.SAMPLE_ORDER, epoch, group, window).permutation(sum(map(len, rows)))
        shards = np.repeat(pieces.shards[number], pieces.sizes[number])
        return shards[order].astype(np.int32), np.concatenate(rows)[order].astype(np.int32)

    def _draw_rows(self, shard: int, times: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return the rows of a shard, each as often as it is drawn."""
        rows = np.arange(self._sizes[shard])
        if times is None:
            return rows
        return np.repeat(rows, times[self._starts[shard] : self._starts[shard] + self._sizes[shard]])


def _window_edges(num_pieces: int, window_pieces: int, *, grows: bool) -> NDArray[np.int64]:
    """Return the first piece of each window, and the number of pieces at the end.

    Args:
        num_pieces: Pieces in all.
        window_pieces: Pieces of a window at least, where there are so many; windows are of about the same size, so that
            none mixes few.
        grows: The first windows have 1, 1, 2, 4, ... pieces, each as many as all before it.
    """
    first = [edge for edge in (0, 1, 2, 4, 8, 16, 32) if edge < min(num_pieces, window_pieces + 1)] if grows else [0]
    rest = num_pieces - first[-1]
    num_windows = max(1, rest // window_pieces)
    return np.array([*first[:-1], *(first[-1] + rest * window // num_windows for window in range(num_windows + 1))])


def _remembered(values: OrderedDict[Key, Value], key: Key, compute: Callable[[], Value], most: int) -> Value:
    """Return the value of a key, computed unless it is one of the newest ``most``."""
    if key not in values:
        values[key] = compute()
        if len(values) > most:
            values.popitem(last=False)
    return values[key]


def _sum_by_shard(times: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of ``times`` (N,) over the samples of each shard: (num_shards,)."""
    sums = np.concatenate([[0], np.cumsum(times)])
    ends = np.cumsum(sizes)
    return np.asarray(sums[ends] - sums[ends - sizes], dtype=np.int64)
