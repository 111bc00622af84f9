"""How average precision is measured: COCO's protocol, and what a user may change of it.

Everything that can be changed is a parameter of pycocotools too (`maxDets`, `areaRng`, `catIds`, `useCats`), so any
figure can be checked there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.text import did_you_mean, plural

LONGEST_SIDE = 1e5
"""Upper end of COCO's ranges: the side of a square of 1e10 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeRange:
    """Objects of one size; both ends belong to it.

    Attributes:
        name: Of the figures AP_name and AR_name.
        low: Side of the smallest square in pixels.
        high: Side of the largest one.
    """

    name: str
    low: float
    high: float

    @staticmethod
    def parse(text: str) -> SizeRange:
        """Read a range as it is written on the command line: tiny=0-16, or huge=512- without an upper end.

        Raises:
            UserError: It is written in another way, or its ends are in the wrong order.
        """
        match = re.fullmatch(r"([A-Za-z]\w*)=(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)?", text.strip())
        low, high = (float(match[2]), float(match[3] or LONGEST_SIDE)) if match else (0.0, 0.0)
        if not match or low >= high:
            raise UserError(
                f"--area {text!r}: write NAME=LOW-HIGH with the sides of squares in pixels, as small=0-32, or large=96-"
            )
        return SizeRange(name=match[1], low=low, high=high)


COCO_SIZES = (
    SizeRange(name="small", low=0, high=32),
    SizeRange(name="medium", low=32, high=96),
    SizeRange(name="large", low=96, high=LONGEST_SIDE),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """The parameters of an evaluation; the defaults are COCO's.

    Attributes:
        max_detections: Of one class in one image, the best ones that count.
        sizes: Ranges that have figures of their own.
        classes: Names or ids of the classes that are evaluated; empty: all.
        class_agnostic: Whether a detection may match an object of any class.
    """

    max_detections: int = 100
    sizes: tuple[SizeRange, ...] = COCO_SIZES
    classes: tuple[str, ...] = ()
    class_agnostic: bool = False

    @property
    def allowed(self) -> tuple[int, ...]:
        """Numbers of detections that have a recall of their own: 1, 10 and the most that count."""
        return (*(count for count in (1, 10) if count < self.max_detections), self.max_detections)

    @property
    def area_ranges(self) -> NDArray[np.float64]:
        """(1 + sizes, 2) lowest and highest area: all objects, then each size."""
        return np.array([[0, LONGEST_SIDE**2], *([size.low**2, size.high**2] for size in self.sizes)])

    @property
    def precision_names(self) -> tuple[str, ...]:
        """Names of the figures of precision."""
        return ("AP", "AP50", "AP75", *(f"AP_{size.name}" for size in self.sizes))

    @property
    def recall_names(self) -> tuple[str, ...]:
        """Names of the figures of recall."""
        return (*(f"AR_{count}" for count in self.allowed), *(f"AR_{size.name}" for size in self.sizes))

    @property
    def figure_names(self) -> tuple[str, ...]:
        """Names of all figures: AP, AP50, AP75, AP of three sizes, AR_1, AR_10, AR_100, AR of three sizes."""
        return (*self.precision_names, *self.recall_names)

    def as_json(self) -> dict[str, Any]:
        """Return the parameters as plain JSON values."""
        return asdict(self)

    def select(self, categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
        """Return the names of the categories that are evaluated, by their ids.

        Raises:
            UserError: A class is not among them.
        """
        names = {category["id"]: str(category["name"]) for category in categories}
        if not self.classes:
            return names
        chosen: set[int] = set()
        for wanted in self.classes:
            found = {number for number, name in names.items() if wanted == name}
            if not (found := found or {number for number in names if wanted == str(number)}):
                raise UserError(
                    f"--classes: '{wanted}' is not a class of the ground truth ({plural(len(names), 'class')})"
                    f"{did_you_mean(wanted, names.values())}"
                )
            chosen |= found
        return {number: name for number, name in names.items() if number in chosen}


COCO_PROTOCOL = Protocol()


def parse_protocol(
    max_detections: int | None, areas: Iterable[str], classes: Iterable[str], class_agnostic: bool
) -> Protocol:
    """Return the protocol that the options of a command ask for.

    Args:
        max_detections: None: COCO's 100.
        areas: Ranges as `SizeRange.parse` reads them; none: COCO's.
        classes: Names or ids, one or several with commas between them.
        class_agnostic: Whether classes do not matter.

    Raises:
        UserError: An option cannot be read, or two ranges have one name.
    """
    names = [name.strip() for entry in classes for name in entry.split(",")]
    sizes = tuple(map(SizeRange.parse, areas)) or COCO_SIZES
    size_names = [size.name for size in sizes]
    if twice := {name for name in size_names if size_names.count(name) > 1}:
        raise UserError(f"--area: the name '{min(twice)}' is given to two ranges; give each a name of its own")
    return Protocol(
        max_detections=COCO_PROTOCOL.max_detections if max_detections is None else max_detections,
        sizes=sizes,
        classes=tuple(name for name in names if name),
        class_agnostic=class_agnostic,
    )
