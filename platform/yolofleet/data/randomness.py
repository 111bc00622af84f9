"""Random numbers by name: a generator is a pure function of a seed and of what it is for.

Philox turns a key and a counter into random bits, so nothing is ever advanced, saved or restored, and it makes no
difference who draws, in which order, or how often the run was stopped.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are for; each purpose has numbers of its own."""

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
