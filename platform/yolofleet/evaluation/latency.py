"""How long a network takes for one picture."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn


@torch.inference_mode()
def median_milliseconds(
    model: nn.Module, image_size: int, device: torch.device, *, warm_up: int, repetitions: int
) -> float:
    """Return the median time of a network for one square random picture.

    Args:
        model: In evaluation mode.
        image_size: Side of the picture in pixels.
        device: Where the model lies.
        warm_up: Passes that are not counted.
        repetitions: Passes that are.
    """
    image = torch.rand(1, 3, image_size, image_size, device=device)
    seconds = []
    for repetition in range(warm_up + repetitions):
        begin = time.perf_counter()
        model(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repetition >= warm_up:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds) * 1000
