"""Random predictions and boxes for the tests of the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from losses.golden_loss import anchors_of
from yolofleet.losses import DetectionLoss
from yolofleet.losses.assigners import Scene

STRIDES = [8, 16, 32]
GAINS = {"box": 0.05, "cls": 0.3, "obj": 0.7}


def make_loss(num_classes: int = 5, **settings: Any) -> DetectionLoss:
    gains = {**GAINS, **settings.pop("hyperparameters", {})}
    return DetectionLoss(
        anchors=anchors_of("p5"), strides=STRIDES, num_classes=num_classes, hyperparameters=gains, **settings
    )


def make_predictions(
    seed: int,
    batch_size: int = 2,
    image_size: tuple[int, int] = (96, 128),
    num_classes: int = 5,
    heads: int = 1,
    spread: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch_size, 3, image_size[0] // s, image_size[1] // s, 5 + num_classes) for s in STRIDES] * heads
    return [torch.randn(shape, generator=generator, dtype=torch.float64).mul(spread).to(dtype) for shape in shapes]


def make_targets(seed: int, number: int, batch_size: int = 2, num_classes: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = 0.03 * 25.0 ** torch.rand(number, 2, generator=generator)
    centre = size / 2 + torch.rand(number, 2, generator=generator) * (1 - size)
    image = torch.randint(0, batch_size, (number, 1), generator=generator)
    label = torch.randint(0, num_classes, (number, 1), generator=generator)
    return torch.cat([image, label, centre, size], 1)


def positives(loss: DetectionLoss, predictions: list[Tensor], targets: Tensor, size: tuple[int, int]) -> list[Any]:
    return [sorted(map(tuple, level.tolist())) for level in loss.assign(predictions, targets, size)]


LAYOUTS = ("cpu", "small pieces", "padded device", "shared device", "compiled")


def use_layout(patch: pytest.MonkeyPatch, layout: str) -> None:
    """Make the loss match as on a CPU, or on a CPU as it does on a device.

    The devices' layouts have fixed shapes: of every image's table with targets in host memory (padded), of one table
    of all images with targets on the device (shared), and of tables with as much room for each image, as torch compiles
    them.
    """
    if layout == "small pieces":
        patch.setattr("yolofleet.losses.batched_matching.CPU_PAIRS", 100)
    elif layout in {"padded device", "compiled"}:
        patch.setattr("yolofleet.losses.batched_matching.CPU_PAIRS", 1 << 40)  # packs all images together
        for module in ("levels", "candidates"):
            patch.setattr(f"yolofleet.losses.{module}.is_readable", lambda tensor: False)
        if layout == "compiled":
            make_scene = DetectionLoss._make_scene
            patch.setattr(DetectionLoss, "_make_scene", lambda *given: _padded(make_scene(*given)))
    elif layout == "shared device":
        for module in ("levels", "candidates", "boxes", "batched_matching"):
            patch.setattr(f"yolofleet.losses.{module}.is_readable", lambda tensor: False)


def _padded(scene: Scene) -> Scene:
    return scene.padded() or scene  # crowds are not compiled
