"""ONNX with suppression inside against torch and our own suppression, on 128 real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from yolofleet.data.letterbox import letterbox
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.evaluation.images import read_image
from yolofleet.export.exporter import export_detector
from yolofleet.export.formats import Request
from yolofleet.export.settings import InputShape, Thresholds
from yolofleet.export.verification import verify
from yolofleet.models import build_model
from yolofleet.models.network import Network
from yolofleet.specs.model import ModelChoice

pytestmark = pytest.mark.slow
SIDE, BATCH = 256, 4
SPREAD, RARITY = 2.0, -6.0
"""Of the head's logits: they leave some thousand candidates an image, as a trained detector does."""
CLASSES = [(number + 1, f"class {number}") for number in range(80)]


def make_choosy(model: Network, images: Tensor) -> None:
    """Give the head logits of a fixed spread, objectness and classes rarely positive."""
    with torch.no_grad():
        for conv in model.head.lead:
            conv.bias.zero_()
        for conv, raw in zip(model.head.lead, model.lead(images), strict=True):
            conv.weight *= SPREAD / raw.std()
            conv.bias.view(model.head.num_anchors, -1)[:, 4:] = RARITY


@pytest.mark.parametrize("multi_label", [True, False])
def test_all_of_coco128(multi_label: bool, test_data: Path, tmp_path: Path) -> None:
    paths = sorted((test_data / "coco128").rglob("*.jpg"))
    assert len(paths) == 128
    planes = [letterbox(read_image(path), (SIDE, SIDE))[0].transpose(2, 0, 1) for path in paths]
    images = torch.from_numpy(np.stack(planes)).float() / 255
    batches = list(images.split(BATCH))
    torch.manual_seed(0)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.25, hidden_width=0.25)
    model = build_model(choice, num_classes=80, deployed=True).eval()
    make_choosy(model, batches[0])
    detector = Detector.load(save_detector(tmp_path / "detector", model, CLASSES, SIDE))
    thresholds = Thresholds(confidence=0.001, iou=0.65, max_detections=300, multi_label=multi_label)
    shape = InputShape(batch=BATCH, image_size=SIDE, dynamic=False)
    request = Request(format="onnx", shape=shape, thresholds=thresholds)
    exported = export_detector(detector, tmp_path / "model.onnx", request)
    found = verify(exported.path, "onnx", detector, thresholds, batches)
    assert found.num_images == 128 and found.num_boxes > 128 * 100
    assert found.equal, found
