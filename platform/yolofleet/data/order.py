"""The order of samples: one endless stream, computed from its position alone.

Sample g of the stream is sample ``g % N`` of epoch ``g // N``. An epoch's order is made of two shuffles, both keyed by
(seed, epoch): the shards are shuffled, then the samples within each window of a few shards that follow each other. So
reading stays nearly sequential, a node needs a window's shards at a time, and only that window is ever computed: the
start costs the shuffle of the shard list (milliseconds at 10^5 shards) and memory for two numbers a shard.

Random numbers come from generators that are a pure function of a seed and of their purpose. Philox turns a key and a
counter into random bits, so no generator is advanced, saved or restored: it makes no difference which process draws, in
which order, or how often the run was stopped.

With image weights, images with rare classes are drawn more often, from the training set's annotations alone. An image's
weight is the sum over its boxes of the inverse frequency of their classes. The published option multiplies each class
by (1 - AP)^2 of the newest evaluation as well; that is left out, because the order of samples would then depend on the
course of the run and the sample at a position would no longer be a pure function of (dataset, seed, position).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW_SHARDS = 8
MOST_WINDOWS_KEPT = 4


class Purpose(IntEnum):
    """Purposes of random numbers; each has numbers of its own."""

    SHARD_ORDER = 1
    SAMPLE_ORDER = 2
    AUGMENTATION = 3
    SYNTHESIS = 4
    IMAGE_SIZE = 5
    IMAGE_WEIGHTS = 6
    ANCHORS = 7


def keyed_generator(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """Return the generator for a seed, a purpose and up to two numbers (such as epoch and window, or the sample)."""
    first, second = (*numbers, 0, 0)[:2]
    # The counter's lowest word is left to the generator itself: 2^64 draws before it would meet a neighbour.
    counter = np.array([0, int(purpose), second, 0], dtype=np.uint64)
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
class SampleLocation:
    """Where to find a sample of the stream: epoch, window of the epoch, shard, row in the shard."""

    epoch: int
    window: int
    shard: int
    row: int


@dataclass(frozen=True)
class _Epoch:
    """One epoch: its order of shards and the first samples of its windows."""

    shards: NDArray[np.int64]
    """(num_shards,) shard numbers in the order of the epoch."""
    window_starts: NDArray[np.int64]
    """(num_windows + 1,) position in the epoch of each window's first sample, and N at the end."""
    draw_counts: NDArray[np.int64] | None
    """(N,) how often each sample is drawn; None draws each once."""


class SampleOrder:
    """The order of the samples of a dataset. Pure: it caches only values that it would compute again.

    Args:
        shard_sizes: (num_shards,) samples of each shard.
        seed: Seed of the run.
        window_shards: Shards in a window; more of them shuffle better and need more disk at a time.
        shuffle: False keeps the order of the shards.
        weights: (N,) how often each sample is drawn an epoch in the long run; None draws each once. An epoch stays N
            samples long, and each shard still lies in one window of it; memory is then a few numbers a sample.
    """

    def __init__(
        self,
        shard_sizes: NDArray[np.int64],
        seed: int,
        *,
        window_shards: int = WINDOW_SHARDS,
        shuffle: bool = True,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._weights = weights
        self._seed = seed
        self._window_shards = window_shards
        self._shuffle = shuffle
        self.num_samples = int(self._sizes.sum())
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        again = partial(SampleOrder, window_shards=self._window_shards, shuffle=self._shuffle, weights=self._weights)
        return again, (self._sizes, self._seed)

    def locate(self, position: int) -> SampleLocation:
        """Return the location of sample ``position`` (g) of the endless stream."""
        epoch_number, within = divmod(position, self.num_samples)
        with self._lock:
            epoch = self._epoch(epoch_number)
            window = int(np.searchsorted(epoch.window_starts, within, side="right")) - 1
            shards, rows = self._window(epoch_number, epoch, window)
        slot = within - int(epoch.window_starts[window])
        return SampleLocation(epoch_number, window, int(shards[slot]), int(rows[slot]))

    def num_windows(self, epoch: int) -> int:
        """Return the number of windows of an epoch."""
        with self._lock:
            return len(self._epoch(epoch).window_starts) - 1

    def window_shards(self, epoch: int, window: int) -> list[int]:
        """Return the shards of a window, in the order in which they should be fetched."""
        with self._lock:
            shards = self._epoch(epoch).shards
        return [int(shard) for shard in shards[window * self._window_shards : (window + 1) * self._window_shards]]

    def window_after(self, epoch: int, window: int) -> tuple[int, int]:
        """Return epoch and number of the window that follows."""
        return (epoch, window + 1) if window + 1 < self.num_windows(epoch) else (epoch + 1, 0)

    def window_samples(self, epoch: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return shard and row of every sample of a window, (n,) each, in order."""
        with self._lock:
            return self._window(epoch, self._epoch(epoch), window)

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            times = None if self._weights is None else draw_counts(self._weights, self._seed, number)
            sizes = self._sizes if times is None else _sum_by_shard(times, self._sizes)
            shards = np.flatnonzero(sizes)
            if self._shuffle:
                shards = keyed_generator(self._seed, Purpose.SHARD_ORDER, number).permutation(shards)
            ends = np.cumsum(sizes[shards])
            starts = np.concatenate([[0], ends[self._window_shards - 1 :: self._window_shards], ends[-1:]])
            self._epochs[number] = _Epoch(shards, np.unique(starts), times)
            if len(self._epochs) > 2:  # this epoch and the one before it, while a window of each is read
                self._epochs.popitem(last=False)
        return self._epochs[number]

    def _window(self, number: int, epoch: _Epoch, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return shard and row of every sample of a window, in order."""
        name = (number, window)
        if name not in self._windows:
            shards = epoch.shards[window * self._window_shards : (window + 1) * self._window_shards]
            sizes = self._sizes[shards]
            first = np.cumsum(sizes) - sizes
            all_shards = np.repeat(shards, sizes)
            all_rows = np.arange(len(all_shards)) - np.repeat(first, sizes)
            if epoch.draw_counts is not None:
                times = epoch.draw_counts[(np.cumsum(self._sizes) - self._sizes)[all_shards] + all_rows]
                all_shards, all_rows = np.repeat(all_shards, times), np.repeat(all_rows, times)
            if self._shuffle:
                order = keyed_generator(self._seed, Purpose.SAMPLE_ORDER, number, window).permutation(len(all_shards))
                all_shards, all_rows = all_shards[order], all_rows[order]
            self._windows[name] = (all_shards, all_rows)
            if len(self._windows) > MOST_WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return self._windows[name]


def _sum_by_shard(times: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of ``times`` (N,) over the samples of each shard: (num_shards,)."""
    sums = np.concatenate([[0], np.cumsum(times)])
    ends = np.cumsum(sizes)
    return np.asarray(sums[ends] - sums[ends - sizes], dtype=np.int64)
