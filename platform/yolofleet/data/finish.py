"""The end of augmentation, where a device does it: the colour and the flips of a whole micro-batch.

Their parameters are drawn with all others of a sample, so what comes out is a pure function of the sample's position,
and equal to what the host makes of it but for the rounding to whole levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Finish:
    """What is left to do with the images of a micro-batch."""

    colours: NDArray[np.float32]
    """(B, 3, 3) colour matrix of each image, for RGB columns."""
    flips: NDArray[np.bool_]
    """(B, 2) whether each image is turned upside down, and whether it is mirrored."""

    @staticmethod
    def nothing(num_images: int) -> Finish:
        """Return what changes no image."""
        return Finish(np.tile(np.eye(3, dtype=np.float32), (num_images, 1, 1)), np.zeros((num_images, 2), dtype=bool))


def finished(images: Tensor, finish: Finish | None) -> Tensor:
    """Do what is left to do with (B, 3, H, W) RGB in 0..1, on their device and without waiting for it."""
    if finish is None:
        return images
    import torch  # here, because loader processes make no tensors and start four times as fast

    def sent(array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.pin_memory() if images.is_cuda else tensor).to(images.device, non_blocking=True)

    images = torch.einsum("bij,bjhw->bihw", sent(finish.colours).to(images.dtype), images).clamp_(0.0, 1.0)
    flips = sent(finish.flips)[..., None, None, None]  # (B, 2, 1, 1, 1)
    for number, dimension in enumerate((2, 3)):
        if finish.flips[:, number].any():
            images = torch.where(flips[:, number], images.flip(dimension), images)
    return images
