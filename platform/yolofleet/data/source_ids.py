"""The ids of a source, in one form, and the columns that refer to them in the ways that tools have.

A column means ids, or their numbers (``000001``, or what a float keeps of an id of 64 bits), or names. Which it is is
decided for the whole column, by the first way that finds most of its values; a way that fits several ids finds none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Identity = int | str
LARGEST_NUMBER = 10**40
"""The numbers of UUIDs have 39 digits."""
MOST_EXACT = 2**53
MOST_NUMBER = 2**64
"""From here on numbers are kept as text: as keys of a dictionary, some could be chosen to collide."""
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,40}(\.0+)?", re.ASCII)


@dataclass(frozen=True)
class FoundIds:
    """The ids that a column refers to, None where a value refers to none, and the way it does."""

    ids: list[Identity | None]
    way: str

    @property
    def num_found(self) -> int:
        """Values that refer to an id."""
        return sum(identity is not None for identity in self.ids)


def identity_of(value: Any) -> Identity | None:
    """Return an id in the form that ids are compared in: 1, 1.0 and "1" are one; None for what is no id."""
    if isinstance(value, float) and abs(value) < LARGEST_NUMBER and value == int(value):
        value = int(value)  # pandas writes columns with gaps as floats
    if isinstance(value, str) and value:
        number = number_of(value)
        return number if number is not None and abs(number) < MOST_NUMBER and str(number) == value else value
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= LARGEST_NUMBER:
        return None
    return value if abs(value) < MOST_NUMBER else str(value)


def number_of(value: Any) -> int | None:
    """Return the whole number that a number or a text is, if it is one."""
    if isinstance(value, str):
        match = WHOLE_NUMBER.fullmatch(value.strip())
        return int(match[0].partition(".")[0]) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST_NUMBER:
        return None
    return int(value) if value == int(value) else None


def find_ids(
    values: Sequence[Any], names: Mapping[Identity, str], forms: Callable[[str], Iterable[str]] = lambda name: [name]
) -> FoundIds:
    """Return the ids that a column refers to.

    Args:
        values: The column, of any values.
        names: The name of each id.
        forms: Returns what a name may be written as.
    """
    numbers: dict[str, Identity | None] | None = None  # few files need them

    def by_number(value: Any) -> Identity | None:
        nonlocal numbers
        if (number := number_of(value)) is None:
            return None
        if numbers is None:
            numbers = _unique((_number_forms(identity), identity) for identity in names)
        return numbers.get(str(number))

    def by_id(value: Any) -> Identity | None:
        if isinstance(value, float) and abs(value) >= MOST_EXACT:
            return by_number(value)
        identity = identity_of(value)
        return identity if identity in names else None

    best = FoundIds([by_id(value) for value in values], "id")
    if best.num_found < len(values):
        found = FoundIds([by_number(value) for value in values], "number")
        best = found if found.num_found > best.num_found else best
    if best.num_found < len(values) and any(isinstance(value, str) for value in values):
        named = _unique((forms(name), identity) for identity, name in names.items())
        found = FoundIds([named.get(value) if isinstance(value, str) else None for value in values], "name")
        best = found if found.num_found > best.num_found else best
    return best


def _number_forms(identity: Identity) -> set[str]:
    """Return the number of an id, and what is left of it in a float, which holds 53 bits."""
    number = number_of(identity)
    return set() if number is None else {str(number), str(int(float(number)))}


def _unique(entries: Iterable[tuple[Iterable[str], Identity]]) -> dict[str, Identity | None]:
    """Return the id that each form belongs to; None where it belongs to several."""
    found: dict[str, Identity | None] = {}
    for forms, identity in entries:
        for form in forms:
            if found.setdefault(form, identity) != identity:
                found[form] = None
    return found
