"""Pictures of a dataset as the network's input: what a quantizer learns ranges from, and what an export is tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.dataset import SampleError, ShardDataset
from yolofleet.data.decode import ImageError
from yolofleet.data.letterbox import letterbox
from yolofleet.data.records import RecordError
from yolofleet.export.settings import ExportError

DEFAULT_PICTURES = 64


def dataset_pictures(
    data: str | Path | ShardDataset, image_size: int, count: int = DEFAULT_PICTURES
) -> NDArray[np.uint8]:
    """Read some pictures of a dataset, evenly spread over it.

    Args:
        data: the shards.
        image_size: side of the square input in pixels.
        count: how many, if there are as many.

    Returns:
        (count, 3, image_size, image_size) uint8 RGB, letterboxed.

    Raises:
        UserError: there is no dataset, or none of the pictures can be read.
    """
    dataset = data if isinstance(data, ShardDataset) else ShardDataset(data)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    planes = []
    for number in numbers.tolist():
        try:
            sample = dataset.read(number)
            pixels = sample.pixels(sample.record())
        except (SampleError, RecordError, ImageError):
            continue  # the dataset's own checks count and name it
        boxed, _ = letterbox(pixels, (image_size, image_size))
        planes.append(boxed.transpose(2, 0, 1))
    if not planes:
        raise ExportError(f"{dataset.url}: none of the {len(numbers)} pictures that were tried can be read")
    return np.stack(planes)
