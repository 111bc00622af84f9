"""A package that holds its network as ONNX predicts with it on a CPU, and says so when it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from export.conftest import CLASSES, lively
from export.test_export import EVERYTHING
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.export.card import KEY, make_card, put_card
from yolofleet.export.onnx_suppression import add_suppression
from yolofleet.export.runtime import NETWORK_NAME, OnnxNetwork, load_detector
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


def changed(path: Path, change: Callable[[ModelProto], None]) -> bytes:
    import onnx

    model = onnx.load(path)
    change(model)
    content: bytes = model.SerializeToString()
    return content


def rewrite_card(model: ModelProto, **fields: object) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == KEY)
    entry.value = json.dumps({**json.loads(entry.value), **fields})


def rename_input(model: ModelProto) -> None:
    name = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["pictures" if used == name else used for used in node.input]
    model.graph.input[0].name = "pictures"


def test_it_predicts_in_onnx_runtime_what_torch_predicts(with_network: Path) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((64, 64), (40, 90), (90, 40))]
    detector = load_detector(with_network)
    assert isinstance(detector.network, OnnxNetwork)
    expected, found = (each.predict(images, batch_size=2) for each in (Detector.load(with_network), detector))
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
        ("other weights", "made from other weights"),
        ("other network", "not compute the same"),
        ("with suppression", "--nms"),
        ("cut off", "not an ONNX file"),
        ("of a later yolofleet", "format"),
        ("unrunnable", "cannot be run"),
        ("no runtime", "onnxruntime is not installed"),
    ],
)
def test_torch_predicts_and_a_warning_says_why_a_file_cannot_be_used(
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
    elif kind == "with suppression":
        whole = add_suppression(network, EVERYTHING, num_classes=len(CLASSES))
        card = make_card(Detector.load(with_network).card, (8, 16, 32), any_shape, EVERYTHING)
        put_card(whole, card)
        path.write_bytes(whole.SerializeToString())
    elif kind == "of a later yolofleet":
        path.write_bytes(changed(path, lambda model: rewrite_card(model, format=2)))
    elif kind == "unrunnable":
        path.write_bytes(changed(path, rename_input))
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        monkeypatch.setattr("yolofleet.export.settings.is_installed", lambda name: False)
    assert not isinstance(load_detector(with_network).network, OnnxNetwork)
    (warning,) = caplog.records
    assert warning.getMessage().startswith("torch predicts, which is slower") and reason in warning.getMessage()
    assert kind == "no runtime" or str(path) in warning.getMessage()
