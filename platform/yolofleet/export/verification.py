"""Running an exported file beside the detector that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.nms import non_maximum_suppression
from yolofleet.export.formats import FORMATS
from yolofleet.export.prediction_comparison import Comparison, compare_decoded, compare_detections, joined
from yolofleet.export.settings import InputShape, Thresholds
from yolofleet.models import deploy

SEED = 0
NUM_NOISE = 2


def noise(shape: InputShape, stride: int) -> list[Tensor]:
    """Return batches of random images (B, 3, H, W) in 0..1; for any input also one of another batch and shape."""
    generator = torch.Generator().manual_seed(SEED)
    sizes = [(shape.batch, shape.image_size, shape.image_size)]
    if shape.dynamic:
        sizes += [(shape.batch + 2, shape.image_size + stride, max(stride, shape.image_size - stride))]
    return [torch.rand(batch, 3, height, width, generator=generator) for batch, height, width in sizes]


@torch.inference_mode()
def verify(
    path: Path, name: str, detector: Detector, thresholds: Thresholds | None, batches: list[Tensor]
) -> Comparison:
    """Run an exported file and compare its answers with torch's.

    Args:
        path: The file (of a model repository, the ONNX file in it).
        name: The name of its format.
        detector: What it was made of.
        thresholds: Thresholds of the NMS inside it, if any.
        batches: Images (B, 3, H, W) in 0..1.

    Raises:
        ExportError: The file cannot be run.
    """
    model = deploy(detector.model).cpu().eval()
    network: Any = FORMATS.get(name).load(path)
    if thresholds is not None:
        return joined([_with_suppression(model(batch), network.detections(batch), thresholds) for batch in batches])
    return joined([compare_decoded(model(batch), network(batch)) for batch in batches])


def _with_suppression(decoded: Tensor, found: list[Tensor], thresholds: Thresholds) -> Comparison:
    expected = non_maximum_suppression(
        decoded,
        confidence=thresholds.confidence,
        iou=thresholds.iou,
        max_detections=thresholds.max_detections,
        multi_label=thresholds.multi_label,
    )
    return compare_detections(expected, found, full=thresholds.max_detections)
