"""Points of the unit cube, each a pure function of the seed and its number: a resumed search draws the same again."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


def random_point(seed: int, number: int, num_parameters: int) -> list[float]:
    """Return an evenly distributed point."""
    drawn: list[float] = np.random.default_rng((seed, number)).random(num_parameters).tolist()
    return drawn


def even_point(seed: int, number: int, num_parameters: int) -> list[float]:
    """Return a point of a scrambled Halton sequence, whose first points fill the cube more evenly than chance does.

    Each parameter counts in a prime base of its own, its digits permuted by the seed, and is then shifted; beyond 20
    parameters, where such sequences fill the cube no better than chance, the rest is random.
    """
    known = min(num_parameters, len(PRIMES))
    point = [_radical_inverse(number + 1, PRIMES[axis], seed, axis) for axis in range(known)]
    shift = np.random.default_rng((seed, 7)).random(known)
    point = [(coordinate + offset) % 1.0 for coordinate, offset in zip(point, shift.tolist(), strict=True)]
    return point + random_point(seed, number, num_parameters - known)


def _radical_inverse(number: int, base: int, seed: int, axis: int) -> float:
    result, scale = 0.0, 1.0 / base
    permutation = _permutation(base, seed, axis)
    while number:
        number, digit = divmod(number, base)
        result += permutation[digit] * scale
        scale /= base
    return result


@lru_cache(maxsize=256)
def _permutation(base: int, seed: int, axis: int) -> tuple[int, ...]:
    """Return the order of the digits; 0 stays, so that numbers of any length have a value."""
    rest = np.random.default_rng((seed, axis, base)).permutation(np.arange(1, base))
    return (0, *rest.tolist())


def pool(seed: int, number: int, num_points: int, num_parameters: int) -> NDArray[np.float64]:
    """Return (points, parameters) for a searcher to choose among in its step ``number``."""
    return np.random.default_rng((seed, number, 1)).random((num_points, num_parameters))
