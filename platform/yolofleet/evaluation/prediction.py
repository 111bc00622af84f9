"""What a detector found in an image, as the Python API returns it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What was found in an image; a notebook shows the image with its boxes.

    Attributes:
        objects: Best first: category_id, category_name, bbox x, y, width, height in pixels, score.
        pixels: (H, W, 3) uint8 RGB, the upright image.
    """

    objects: list[dict[str, Any]]
    pixels: NDArray[np.uint8]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.objects)

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.objects[position]

    def __repr__(self) -> str:
        counts = Counter(entry["category_name"] for entry in self.objects).most_common()
        found = ", ".join(f"{count} {name}" for name, count in counts) or "nothing found"
        return f"Prediction of {self.pixels.shape[1]}x{self.pixels.shape[0]} pixels: {found}"

    def image(self) -> Image:
        """Return the image with boxes and labels."""
        from yolofleet.data.draw import draw_detections

        return draw_detections(self.pixels, self.objects)

    def _repr_png_(self) -> bytes:
        from yolofleet.data.draw import encode

        return encode(self.image(), "png")
