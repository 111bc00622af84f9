"""Exported files run and detect the same objects as torch; their metadata is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from export.conftest import lively
from yolofleet.cli.main import main
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.export.card import ExportCard, make_card, put_card
from yolofleet.export.exporter import export_detector
from yolofleet.export.formats import FORMATS, ExportFormat, Request
from yolofleet.export.onnx_suppression import add_suppression
from yolofleet.export.runtime import OnnxNetwork
from yolofleet.export.settings import ExportError, InputShape, Thresholds
from yolofleet.export.triton import write_repository
from yolofleet.export.verification import random_batches, verify
from yolofleet.models import build_model, deploy

if TYPE_CHECKING:
    from onnx import ModelProto

PAPER_MODELS = (
    "yolov7-tiny", "yolov7", "yolov7-x", "yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e", "yolov7-tiny-silu",
)  # fmt: skip
EVERYTHING = Thresholds(confidence=0.001, iou=0.65, max_detections=300, multi_label=True)


def written(
    model: ModelProto, path: Path, detector: Detector, shape: InputShape, thresholds: Thresholds | None
) -> Path:
    whole = model if thresholds is None else add_suppression(model, thresholds, num_classes=len(detector.classes))
    put_card(whole, make_card(detector.card, detector.model.strides, shape, thresholds))
    path.write_bytes(whole.SerializeToString())
    return path


@pytest.mark.slow
def test_any_batch_and_size(network: ModelProto, detector: Detector, any_shape: InputShape, tmp_path: Path) -> None:
    path = written(network, tmp_path / "model.onnx", detector, any_shape, None)
    batches = [torch.rand(batch, 3, height, width) for batch, height, width in ((1, 32, 32), (3, 96, 64), (2, 64, 160))]
    assert verify(path, "onnx", detector, None, batches).equal
    with_nms = written(network, tmp_path / "nms.onnx", detector, any_shape, EVERYTHING)
    found = verify(with_nms, "onnx", detector, EVERYTHING, batches)
    assert found.equal and found.num_boxes > 100
    assert OnnxNetwork(with_nms).card.classes == detector.card.classes


@pytest.mark.system
def test_only_standard_operators(network: ModelProto, detector: Detector) -> None:
    whole = add_suppression(network, EVERYTHING, num_classes=3)
    assert {node.domain for node in whole.graph.node} <= {"", "ai.onnx"}
    assert {entry.domain for entry in whole.opset_import} == {""} and not whole.functions


@pytest.mark.parametrize("kind", ["torchscript", "safetensors"])
def test_torch_files(kind: Any, detector: Detector, any_shape: InputShape, tmp_path: Path) -> None:
    request = Request(format=kind, shape=any_shape)
    exported = export_detector(detector, tmp_path / "model", request)
    found = verify(exported.path, kind, detector, None, random_batches(any_shape, 32))
    assert found.equal and found.num_images > 1
    exported.path.write_bytes(exported.path.read_bytes()[:1000])
    with pytest.raises(ExportError, match="model"):
        verify(exported.path, kind, detector, None, random_batches(any_shape, 32))


@pytest.mark.system
def test_a_wrong_file_is_not_verified(
    network: ModelProto, detector: Detector, any_shape: InputShape, tmp_path: Path
) -> None:
    model = lively(build_model(detector.card.model, num_classes=3, deployed=True)).eval()
    other = Detector(model=model, network=model, card=detector.card, device=detector.device)
    path = written(network, tmp_path / "model.onnx", detector, any_shape, None)
    assert not verify(path, "onnx", other, None, random_batches(any_shape, 32)).equal


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x07" * 100])
def test_other_files_than_onnx_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx"):
        OnnxNetwork(tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="cannot read"):
        OnnxNetwork(tmp_path / "missing.onnx")


def test_a_repository_that_triton_can_read(
    network: ModelProto, detector: Detector, any_shape: InputShape, tmp_path: Path
) -> None:
    for thresholds, inputs, outputs in (
        (None, [3, -1, -1], {"decoded": [-1, 8]}),
        (EVERYTHING, [3, -1, -1], {"detections": [300, 6], "num_detections": [1]}),
    ):
        model = network if thresholds is None else add_suppression(network, thresholds, num_classes=3)
        card = make_card(detector.card, detector.model.strides, any_shape, thresholds)
        write_repository(tmp_path, "shapes", model, card)
        config = triton_config((tmp_path / "shapes" / "config.pbtxt").read_text())
        assert (config.name, config.platform, config.max_batch_size) == ("shapes", "onnxruntime_onnx", 16)
        assert list(config.input[0].dims) == inputs and config.input[0].data_type == 11
        assert {entry.name: list(entry.dims) for entry in config.output} == outputs
        assert (tmp_path / "shapes" / config.output[0].label_filename).read_text().split() == [
            "circle",
            "square",
            "tree",
        ]
        assert (tmp_path / "shapes" / "1" / "model.onnx").is_file()
    with pytest.raises(ExportError, match="--name"):
        write_repository(tmp_path, "../out", network, card)


def triton_config(text: str) -> Any:
    """Parse a configuration with the fields of Triton's ModelConfig that ours uses."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="triton", syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    for name, number in (("TYPE_INVALID", 0), ("TYPE_INT64", 9), ("TYPE_FP32", 11)):
        kinds.value.add(name=name, number=number)
    tensor = file.message_type.add(name="Tensor")
    tensor.field.add(name="name", number=1, type=field.TYPE_STRING, label=1)
    tensor.field.add(name="data_type", number=2, type=field.TYPE_ENUM, type_name=".triton.DataType", label=1)
    tensor.field.add(name="dims", number=3, type=field.TYPE_INT64, label=3)
    tensor.field.add(name="label_filename", number=4, type=field.TYPE_STRING, label=1)
    batching = file.message_type.add(name="Batching")
    batching.field.add(name="max_queue_delay_microseconds", number=2, type=field.TYPE_UINT64, label=1)
    config = file.message_type.add(name="Config")
    config.field.add(name="name", number=1, type=field.TYPE_STRING, label=1)
    config.field.add(name="platform", number=2, type=field.TYPE_STRING, label=1)
    config.field.add(name="max_batch_size", number=4, type=field.TYPE_INT32, label=1)
    config.field.add(name="input", number=5, type=field.TYPE_MESSAGE, type_name=".triton.Tensor", label=3)
    config.field.add(name="output", number=6, type=field.TYPE_MESSAGE, type_name=".triton.Tensor", label=3)
    config.field.add(name="dynamic_batching", number=11, type=field.TYPE_MESSAGE, type_name=".triton.Batching", label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.Config"))
    return text_format.Parse(text, kind())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "onx"), "no export format 'onx'; did you mean 'onnx'? (registered: onnx, safetensors"),
        (("--image-size", "50"), "take 64"),
        (("--format", "torchscript", "--nms"), "--nms"),
        (("--int8", "nowhere"), "nowhere"),
        (("--format", "triton", "--name", "a/b"), "--name a/b"),
        (("--confidence", "0.5", "--multi-label"), "without --nms no boxes are selected in the file: leave out --conf"),
        (("--iou", "0.5", "--max-detections", "9"), "leave out --iou, --max-detections"),
        (("--calibration-images", "8"), "without --int8 nothing is calibrated: leave out --calibration-images"),
        (("--name", "birds"), "--format onnx writes no model repository: leave out --name"),
    ],
)
def test_a_wrong_request_is_refused(
    arguments: tuple[str, ...], message: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "triton" in arguments:
        pytest.importorskip("onnxscript")
    assert main(["export", str(package), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["torchscript", "safetensors"])
def test_a_file_that_cannot_be_written_is_one_message(
    kind: str, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(package), "/proc/detector", "--format", kind]) == 2
    assert "error: cannot write /proc/detector: No such file" in capsys.readouterr().err


def write_summary(path: Path, detector: Detector, request: Request, card: ExportCard) -> Path:
    """Write the parameters of each block as JSON: a format of one's own."""
    blocks = {name: sum(p.numel() for p in block.parameters()) for name, block in detector.model.blocks.items()}
    path.write_text(json.dumps({"model": card.model, "image_size": request.shape.image_size, "parameters": blocks}))
    return path


def test_a_format_of_ones_own_is_one_line(
    package: Path, detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(FORMATS, "_items", dict(FORMATS.items()))
    FORMATS.register("summary")(ExportFormat(write=write_summary))
    out = tmp_path / "new" / "summary.json"
    assert main(["export", str(package), str(out), "--format", "summary", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(out)
    summary = json.loads(out.read_text())
    head = sum(parameter.numel() for parameter in detector.model.head.parameters())
    total = sum(parameter.numel() for parameter in detector.model.parameters())
    assert (summary["model"], summary["image_size"]) == (detector.card.model.name, 64)
    assert sum(summary["parameters"].values()) + head == total
    for option, message in (("--nms", "--nms"), ("--verify", "cannot be run here; leave out --verify")):
        assert main(["export", str(package), str(out), "--format", "summary", option]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", PAPER_MODELS)
def test_every_model_of_the_paper(name: str, dynamic: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lively(deploy(build_model(name, num_classes=3).eval()))
    side = 2 * model.max_stride
    detector = Detector.load(save_detector(tmp_path / "detector", model, [(1, "a"), (2, "b"), (3, "c")], side))
    shape = InputShape(batch=1, image_size=side, dynamic=dynamic)
    request = Request(format="onnx", shape=shape, thresholds=EVERYTHING)
    exported = export_detector(detector, tmp_path / "model.onnx", request)
    found = verify(exported.path, "onnx", detector, EVERYTHING, random_batches(shape, model.max_stride))
    assert found.equal and found.num_boxes > 0, found
