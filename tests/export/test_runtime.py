"""A package that holds its network as ONNX predicts with it on a CPU, and says so when it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from export.conftest import CLASSES, lively
from yolofleet.evaluation.detector import Detector, save_detector
from yolofleet.export.card import make_card, put_card
from yolofleet.export.onnx_session import OnnxNetwork
from yolofleet.export.runtime import NETWORK_NAME, load_detector
from yolofleet.export.settings import InputShape
from yolofleet.models import build_model

if TYPE_CHECKING:
    from onnx import ModelProto

pytestmark = pytest.mark.system


@pytest.fixture
def with_network(package: Path, network: ModelProto, any_shape: InputShape, tmp_path: Path) -> Path:
    """The package, with its network as ONNX."""
    folder = shutil.copytree(package, tmp_path / "with_network")
    return put(folder, network, any_shape)


def put(folder: Path, network: ModelProto, shape: InputShape, *, quantized: bool = False) -> Path:
    detector = Detector.load(folder)
    put_card(network, make_card(detector.card, detector.model.strides, shape, None, quantized=quantized))
    (folder / NETWORK_NAME).write_bytes(network.SerializeToString())
    return folder


def test_it_predicts_in_onnx_runtime_what_torch_predicts(with_network: Path) -> None:
    random = np.random.default_rng(0)
    pictures = [
        random.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((64, 64), (40, 90), (90, 40))
    ]
    detector = load_detector(with_network)
    assert isinstance(detector.network, OnnxNetwork)
    expected, found = (each.predict(pictures, batch_size=2) for each in (Detector.load(with_network), detector))
    assert sum(map(len, expected)) > 10
    for want, got in zip(expected, found, strict=True):
        assert [record["category_id"] for record in want] == [record["category_id"] for record in got]
        assert [record["score"] for record in want] == pytest.approx([record["score"] for record in got], abs=1e-3)
        boxes, others = ([record["bbox"] for record in records] for records in (want, got))
        np.testing.assert_allclose(boxes, others, atol=0.1)


def test_without_the_file_torch_predicts(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not isinstance(load_detector(package).network, OnnxNetwork)
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fixed", "--dynamic"),
        ("quantized", "--int8"),
        ("other weights", "made of other weights"),
        ("other network", "computes something else"),
        ("cut off", "no ONNX file"),
        ("no runtime", "onnxruntime is not installed"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_and_torch_predicts(
    kind: str,
    reason: str,
    with_network: Path,
    network: ModelProto,
    any_shape: InputShape,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = with_network / NETWORK_NAME
    if kind == "fixed":
        put(with_network, network, InputShape(batch=1, image_size=64, dynamic=False))
    elif kind == "quantized":
        put(with_network, network, any_shape, quantized=True)
    elif kind.startswith("other"):
        torch.manual_seed(1)
        table = Detector.load(with_network).card.model
        model = lively(build_model(table, num_classes=len(CLASSES), deployed=True))
        save_detector(with_network, model, CLASSES, 64)
        if kind == "other network":
            put(with_network, network, any_shape)
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        monkeypatch.setattr("yolofleet.export.packages.find_spec", lambda name: None)
    assert not isinstance(load_detector(with_network).network, OnnxNetwork)
    (told,) = caplog.records
    assert str(path) in told.getMessage() and reason in told.getMessage()
