"""The INT8 network: smaller, near to the float one, its head left in float, its figures reported beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export.conftest import lively
from yolofleet.cli.main import main
from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.synth import write_synthetic_dataset
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.export.onnx_graph import network_to_onnx
from yolofleet.export.quantization import HEAD_PREFIX, quantize
from yolofleet.export.runtime import OnnxNetwork
from yolofleet.export.settings import ExportError, InputShape
from yolofleet.models import build_model
from yolofleet.specs.model import ModelTable
from yolofleet.storage import open_storage

pytestmark = pytest.mark.slow
onnxruntime = pytest.importorskip("onnxruntime")


TABLE = {
    "name": "small",
    "image_size": 64,
    "activation": "silu",
    "blocks": [
        {"block": "conv", "out": 16, "stride": 2},
        {"block": "conv", "out": 16, "stride": 2},
        {"name": "c2", "block": "elan", "hidden": 16, "stack": 2, "taps": "all", "out": 32},
        {"block": "down", "method": "pool"},
        {"name": "c3", "block": "elan", "hidden": 32, "stack": 2, "taps": "all", "out": 64},
        {"name": "p3", "block": "conv", "out": 64},
    ],
    "head": {"from": ["p3"]},
    "anchors": [[10, 13, 16, 30, 33, 23]],
}
CLASSES = [(1, "circle"), (2, "square"), (3, "triangle")]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of few layers: the exporter is done with it soon."""
    torch.manual_seed(0)
    model = lively(build_model(ModelTable.parse(TABLE, source="test"), num_classes=3, deployed=True))
    return save_detector(tmp_path_factory.mktemp("small") / "detector", model, CLASSES, 64, confidence=0.01)


def test_the_head_stays_in_float(package: Path) -> None:
    network = network_to_onnx(Detector.load(package).model, InputShape(batch=1, image_size=64, dynamic=False))
    inputs = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), np.uint8)
    small = quantize(network, inputs)
    convolutions = [node for node in small.graph.node if node.op_type == "Conv"]
    in_float = [node for node in convolutions if not node.input[1].endswith("_DequantizeLinear_Output")]
    assert [node.input[1].startswith(HEAD_PREFIX) for node in in_float] == [True]
    assert len(convolutions) > 10
    images = inputs.astype(np.float32) / 255
    expected, found = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"images": images[:1]}
        )[0]
        for model in (network, small)
    )
    difference = np.abs(expected - found)
    assert difference[..., :2].max() < 4 and difference[..., 4:].mean() < 0.05 and difference.max() > 0
    with pytest.raises(ExportError, match="but a batch needs"):
        quantize(network, inputs, batch=5)


def test_its_worth_is_shown(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "drawn"
    write_synthetic_dataset(folder, 8, seed=1, image_size=64)
    problems = ProblemLog()
    source = parse_coco((folder / "instances.json").read_bytes(), "instances.json", problems)
    build_dataset(source, open_storage(folder / "images"), open_storage(folder / "dataset"), BuildOptions(), problems)
    out = tmp_path / "small.onnx"
    arguments = ["export", str(package), str(out), "--int8", str(folder / "dataset"), "--nms", "--verify", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    for form in ("float", "int8"):
        assert {*report[form]} == {"AP", "AP50", "milliseconds", "megabytes"} and report[form]["milliseconds"] > 0
    assert report["int8"]["megabytes"] < report["float"]["megabytes"]
    assert report["card"]["quantized"] and report["card"]["suppression"]["max_detections"] == 300
    assert OnnxNetwork(out).card.quantized
