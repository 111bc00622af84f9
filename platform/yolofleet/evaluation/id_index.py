"""The images or the categories of a ground truth, found by what other tools call them.

Tools write the id 7 as 7, 7.0 or "7", or write the file's name, its stem, or the number that its stem is. Which way is
meant is decided for a whole column: the one that finds most of its values. Deciding for each value would take a 7 that
is meant as a stem for the id 7 wherever there is such an id.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

AMBIGUOUS = -2
UNKNOWN = -1
EXTENSION = re.compile(r"(?<=[^/])\.[A-Za-z0-9]{1,5}$")
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,40}(\.0+)?")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """The entries that a column of values means.

    Attributes:
        positions: (N,) of the entries; negative: unknown.
        way: How they were found: "id", "number" or "name".
        clash: Two different values that mean the same entry by name, and its position.
    """

    positions: NDArray[np.int64]
    way: str
    clash: tuple[Any, Any, int] | None = None

    @property
    def num_known(self) -> int:
        """Values that mean an entry."""
        return int((self.positions >= 0).sum())


class IdIndex:
    """Entries with an id and a name each.

    Args:
        ids: As the ground truth has them.
        names: File names of images, names of categories.
    """

    def __init__(self, ids: Sequence[Any], names: Sequence[str]) -> None:
        self.ids = list(ids)
        self.names = list(names)
        self._by_id = {value: position for position, value in enumerate(ids)}

    def find(self, values: Sequence[Any], ways: Sequence[str] = ("id", "number", "name")) -> Found:
        """Return the entries that the values mean, by the first way that finds most of them."""
        finders: dict[str, Callable[[Any], int]] = {"id": self._find_id, "number": self._find_number}
        finders["name"] = self._find_name
        counts = Counter(values)
        best, most, best_way = dict.fromkeys(counts, UNKNOWN), 0, ways[0]
        for way in ways:
            table = {value: finders[way](value) for value in counts}
            known = sum(count for value, count in counts.items() if table[value] >= 0)
            if known > most:
                best, most, best_way = table, known, way
            if most == len(values):
                break
        positions = np.fromiter(map(best.__getitem__, values), np.int64, len(values))
        return Found(positions=positions, way=best_way, clash=_clash(best) if best_way == "name" else None)

    def _find_id(self, value: Any) -> int:
        return self._by_id.get(value, UNKNOWN)

    def _find_number(self, value: Any) -> int:
        number = whole_number(value)
        return UNKNOWN if number is None else self._by_number.get(number, UNKNOWN)

    def _find_name(self, value: Any) -> int:
        if not isinstance(value, str):
            return self._by_name.get(value, UNKNOWN)
        return next((self._by_name[form] for form in _forms(value) if form in self._by_name), UNKNOWN)

    @cached_property
    def _by_number(self) -> dict[int, int]:
        numbers = ((position, whole_number(value)) for position, value in enumerate(self.ids))
        # A float holds 53 bits: an id of 64 bits that went through one is found by what is left of it.
        return _index((position, {number, int(float(number))}) for position, number in numbers if number is not None)

    @cached_property
    def _by_name(self) -> dict[Any, int]:
        exact = _index((position, [name]) for position, name in enumerate(self.names))
        return _index((position, _forms(name)) for position, name in enumerate(self.names)) | exact


def whole_number(value: Any) -> int | None:
    """Return the whole number that a number or a text is, if it is one."""
    if isinstance(value, str):
        match = WHOLE_NUMBER.fullmatch(value.strip())
        return int(match[0].split(".")[0]) if match else None
    return int(value) if float(value).is_integer() else None


def _forms(name: str) -> Iterator[Any]:
    """Yield a name and what is left of it without folders, ending and case, the longest form first; then its number."""
    if not name:
        return
    path = unicodedata.normalize("NFC", name).replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")] or [path]
    for spelling in (parts, [part.casefold() for part in parts]):
        for start in range(len(parts)):
            tail = "/".join(spelling[start:])
            yield tail
            yield EXTENSION.sub("", tail)
    number = whole_number(EXTENSION.sub("", parts[-1]))
    if number is not None:
        yield number


def _index(entries: Iterable[tuple[int, Iterable[Any]]]) -> dict[Any, int]:
    """Return the position that each key means; AMBIGUOUS where it means several."""
    positions: dict[Any, int] = {}
    for position, keys in entries:
        for key in keys:
            if positions.setdefault(key, position) != position:
                positions[key] = AMBIGUOUS
    return positions


def _clash(table: dict[Any, int]) -> tuple[Any, Any, int] | None:
    taken: dict[int, Any] = {}
    for value, position in table.items():
        if position >= 0 and taken.setdefault(position, value) != value:
            return taken[position], value, position
    return None
