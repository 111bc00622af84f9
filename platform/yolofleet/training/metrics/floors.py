"""The least that each stage of a step can take on a device, from the profile and two measured ceilings.

A stage can be no faster than its operations at the speed of a matrix product, and no faster than the bytes that it has
to move at the speed of a copy: Williams, Waterman and Patterson, "Roofline", 2009. Waiting, exchanging and storing have
no floor: a step needs none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yolofleet.models.memory import FLOAT32_BYTES, VALUE_BYTES, Precision, activation_bytes
from yolofleet.models.profile import GIGA, cost
from yolofleet.models.wiring import IMAGE_CHANNELS, ModelGraph
from yolofleet.training.loop.pace import PRODUCT_REPEATS, STAGES, TRAINING_PASSES, fastest_seconds, measure_product

COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
TENSORS_MOVED = {1: 7, 2: 9}
"""By the optimiser's moments: weights, gradient and moments read, weights and moments written, the average both."""


@dataclass(frozen=True)
class Ceilings:
    """What a device does at most, measured here."""

    product_flops: float
    """Operations of a matrix product in a second, in the arithmetic of the passes."""
    copy_bytes: float
    """Bytes that a copy reads and writes in a second."""


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure what this process's device does at most."""
    source = torch.ones(COPY_BYTES.get(device.type, COPY_BYTES["cpu"]), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = fastest_seconds(lambda: target.copy_(source), device, PRODUCT_REPEATS)
    return Ceilings(measure_product(device, dtype), 2 * source.numel() / seconds)


def stage_floors(
    graph: ModelGraph,
    ceilings: Ceilings,
    *,
    num_classes: int,
    image_size: int,
    micro_batch_size: int,
    micro_batches: int,
    precision: str = "fp32",
    moments: int = 1,
) -> dict[str, float]:
    """Return the least seconds of each stage of a step on one worker.

    Args:
        graph: The model in training form.
        ceilings: Of the worker's device.
        num_classes: Classes to predict.
        image_size: Side of the images in pixels.
        micro_batch_size: Images that pass through the network together.
        micro_batches: Those of a step.
        precision: Of the passes.
        moments: Moving averages that the optimiser keeps of each gradient.
    """
    size = (image_size, image_size)
    counted = cost(graph, num_classes=num_classes, size=size)
    images = micro_batch_size * micro_batches
    operations = counted.gflops * GIGA * images
    kept_precision: Precision = precision if precision in VALUE_BYTES else "fp32"  # type: ignore[assignment]
    kept = micro_batches * activation_bytes(
        graph, num_classes=num_classes, size=size, micro_batch_size=micro_batch_size, precision=kept_precision
    )
    pixels = IMAGE_CHANNELS * image_size**2 * images
    by_copying = {
        "copy": pixels * (1 + FLOAT32_BYTES),
        "forward": kept,
        "loss": 2 * counted.biased_outputs * images * FLOAT32_BYTES,
        "backward": kept,
        "optimizer": counted.parameters * FLOAT32_BYTES * TENSORS_MOVED[moments],
    }
    by_computing = {"forward": operations, "backward": (TRAINING_PASSES - 1) * operations}
    return {
        stage: max(
            by_computing.get(stage, 0.0) / ceilings.product_flops, by_copying.get(stage, 0) / ceilings.copy_bytes
        )
        for stage in STAGES
    }
