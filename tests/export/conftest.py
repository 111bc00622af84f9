"""A detector that finds much in any image, and its network as ONNX, made once: the exporter takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.export.onnx_graph import network_to_onnx
from yolofleet.export.settings import InputShape
from yolofleet.models import build_model
from yolofleet.models.network import Network
from yolofleet.specs.model import ModelChoice

if TYPE_CHECKING:
    from onnx import ModelProto

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
CLASSES = [(3, "circle"), (7, "square"), (9, "tree")]
LOGIT_SPREAD = 8


def lively(model: Network) -> Network:
    """Spread the head's logits, so that random weights make detections of all scores."""
    with torch.no_grad():
        for conv in model.head.lead:
            conv.weight *= LOGIT_SPREAD
            conv.bias.zero_()
    return model


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployed detector of three classes at 64 px."""
    torch.manual_seed(0)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
    model = lively(build_model(choice, num_classes=len(CLASSES), deployed=True))
    return save_detector(tmp_path_factory.mktemp("export") / "detector", model, CLASSES, 64)


@pytest.fixture(scope="session")
def detector(package: Path) -> Detector:
    return Detector.load(package)


@pytest.fixture(scope="session")
def any_shape() -> InputShape:
    return InputShape(batch=1, image_size=64, dynamic=True)


@pytest.fixture(scope="session")
def network(detector: Detector, any_shape: InputShape) -> ModelProto:
    """The detector's network as ONNX, for any input, without suppression."""
    return network_to_onnx(detector.model, any_shape)
