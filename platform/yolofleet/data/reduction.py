"""By how much an image is decoded smaller than it is: the one rule for training and evaluation.

It depends on the image and on the network's input alone, so an image is the same at any world size and in any order.
"""

from __future__ import annotations

FULL_PIXELS = 1 << 22
"""Images of up to 4 million pixels are always decoded in full."""
MOST_REDUCTION = 8


def reduction(width: int, height: int, needed_side: int) -> int:
    """Return the factor 1, 2, 4 or 8 by which an image is decoded smaller than it is.

    It is halved as long as it has more than 4 million pixels and its longer side stays at least twice the side that is
    needed. So what is kept has at most 4 million pixels, or a longer side of less than four times the needed one.
    """
    factor = 1
    while (
        factor < MOST_REDUCTION
        and width * height > FULL_PIXELS * factor**2
        and max(width, height) >= 2 * factor * 2 * needed_side
    ):
        factor *= 2
    return factor
