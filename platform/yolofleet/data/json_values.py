"""What values of JSON from outside are: numbers, and whole numbers that every program reads alike."""

from __future__ import annotations

from operator import ne
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number that every program reads alike."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def are_numbers(values: list[Any], low: float, high: float) -> bool:
    """Return whether all values are numbers within the bounds; NaN is not, and neither is true or false."""
    if not set(map(type, values)) <= {int, float}:
        return False
    # NaN is unequal to itself; min and max alone might pass over it.
    return not values or (low <= min(values) and max(values) <= high and not any(map(ne, values, values)))
