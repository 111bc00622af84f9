"""How many fetchers a process has: its share of its node's, and as many as bring bandwidth."""

from __future__ import annotations

import math
import os

FIRST_FETCHERS = 4
MOST_FETCHERS = 32
"""Of a node whose number is found by measuring."""
STEP = 1.5
LEAST_GAIN = 1.1
"""So many times the bandwidth must more fetchers bring to stay; they are 1.25 to 2 times as many."""
NUM_RESTS = 10
"""Measurements between a step that brought nothing and the next one."""


class FetcherCount:
    """A number of fetchers that follows the bandwidth: it goes up by steps, and back when a step brought too little.

    Args:
        first: Where it begins, and what it never goes below.
        most: What it never goes above.
    """

    def __init__(self, first: int, most: int) -> None:
        self.value = first
        self._most = most
        self._before: tuple[int, float] | None = None  # number and bandwidth before the newest step
        self._num_rests = 0

    @staticmethod
    def of_process(fetchers: int | None) -> FetcherCount:
        """Return the number for this process.

        Args:
            fetchers: Those of the node; None finds their number.
        """
        if fetchers is None:
            return FetcherCount(process_share(FIRST_FETCHERS), process_share(MOST_FETCHERS))
        return FetcherCount(process_share(fetchers), process_share(fetchers))

    def observe(self, bytes_per_second: float) -> None:
        """Take a measurement during which all fetchers had something to do."""
        if self._before is not None and bytes_per_second < LEAST_GAIN * self._before[1]:
            self.value, self._num_rests = self._before[0], NUM_RESTS
            self._before = None
        elif self._num_rests:
            self._num_rests -= 1
        else:
            self._before = (self.value, bytes_per_second) if self.value < self._most else None
            self.value = min(self._most, math.ceil(STEP * self.value))


def process_share(fetchers: int) -> int:
    """Return this process's share of its node's fetchers, at least one.

    torchrun and Ray Train say how many workers the node has; a process of neither is its only one.
    """
    num_workers = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    number = int(os.environ.get("LOCAL_RANK", "0"))
    return max(1, (fetchers + num_workers - 1 - number) // num_workers)
