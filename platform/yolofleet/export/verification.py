"""Verification of an export: an exported file is run and its predictions are compared with those of the detector."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.nms import non_maximum_suppression
from yolofleet.export.exporter import FORMATS
from yolofleet.export.prediction_comparison import (
    PredictionComparison,
    compare_decoded,
    compare_detections,
    merge_comparisons,
)
from yolofleet.export.settings import ExportError, InputShape, Thresholds
from yolofleet.models import deploy

SEED = 0


def random_batches(shape: InputShape, stride: int) -> list[Tensor]:
    """Return batches of random images (B, 3, H, W) in 0..1; for any input also one of another batch and shape."""
    generator = torch.Generator().manual_seed(SEED)
    sizes = [(shape.batch, shape.image_size, shape.image_size)]
    if shape.dynamic:
        sizes += [(shape.batch + 2, shape.image_size + stride, max(stride, shape.image_size - stride))]
    return [torch.rand(batch, 3, height, width, generator=generator) for batch, height, width in sizes]


@torch.inference_mode()
def verify(
    path: Path, format_name: str, detector: Detector, thresholds: Thresholds | None, batches: list[Tensor]
) -> PredictionComparison:
    """Run an exported file and compare its predictions with torch's.

    Args:
        path: The file (of a model repository, the ONNX file in it).
        format_name: The format that it was written in.
        detector: What it was exported from.
        thresholds: Thresholds of the suppression inside it, if any.
        batches: Images (B, 3, H, W) in 0..1.

    Raises:
        ExportError: The file cannot be run.
    """
    load = FORMATS.get(format_name).load
    if load is None:
        raise ExportError(f"{path}: format {format_name} cannot be run here; leave out --verify")
    # A copy: the detector's own model stays where it is.
    model, network = copy.deepcopy(deploy(detector.model)).cpu().eval(), load(path)
    if thresholds is None:
        return merge_comparisons([compare_decoded(model(batch), network(batch)) for batch in batches])
    return merge_comparisons(
        [_compare_suppressed(model(batch), network.detections(batch), thresholds) for batch in batches]
    )


def _compare_suppressed(decoded: Tensor, detections: list[Tensor], thresholds: Thresholds) -> PredictionComparison:
    expected = non_maximum_suppression(
        decoded,
        confidence=thresholds.confidence,
        iou=thresholds.iou,
        max_detections=thresholds.max_detections,
        multi_label=thresholds.multi_label,
    )
    return compare_detections(expected, detections, full=thresholds.max_detections)
