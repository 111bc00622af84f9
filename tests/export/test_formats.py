"""A format of one's own is one entry: it is written, verified and named by the command like the built-in ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from yolofleet.cli.main import main
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.export.exporter import FORMATS
from yolofleet.export.formats import ExportFormat
from yolofleet.models import build_model, deploy


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    torch.manual_seed(0)
    save_detector(folder, build_model("yolov7-tiny", num_classes=2), [(1, "a"), (2, "b")], 64)
    return folder


def test_a_format_of_ones_own_is_exported_and_verified(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FORMATS, "_items", dict(FORMATS._items))
    models = []

    def write(out, detector, request, card):  # type: ignore[no-untyped-def]
        models.append(deploy(detector.model).eval())
        save_file({"scale": torch.ones(1)}, out)
        return out

    def load(path: Path):  # type: ignore[no-untyped-def]
        def compute(images: Tensor) -> Tensor:
            decoded: Tensor = models[0](images) * load_file(path)["scale"]
            return decoded

        return compute

    FORMATS.register("mine")(ExportFormat(write=write, load=load))
    out = tmp_path / "detector.mine"
    assert main(["export", str(package), str(out), "--format", "mine", "--verify"]) == 0
    assert out.is_file() and "verified against torch" in capsys.readouterr().out
    assert main(["export", str(package), str(out), "--format", "mine", "--nms"]) == 2
    assert "these support them: onnx, triton" in capsys.readouterr().err


def test_an_unknown_format_is_refused_with_the_nearest(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(package), "out", "--format", "onx"]) == 2
    assert "no export format 'onx'; did you mean 'onnx'?" in capsys.readouterr().err
