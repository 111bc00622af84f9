from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.data.class_names import coco_classes
from yolofleet.evaluation.detector import Detector
from yolofleet.models import build_model, deploy
from yolofleet.models.weights import official_parameter_names
from yolofleet.registry.import_checkpoint import package_checkpoint
from yolofleet.training.setup.pretrained import read_trained

CLASSES = {"categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "cross"}]}


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A file as the published code writes it, and the model that is in it."""
    torch.manual_seed(0)
    model = build_model("yolov7-tiny", num_classes=2)
    own = model.state_dict()
    names = official_parameter_names(model)
    path = tmp_path / "weights.pt"
    torch.save({official: own[ours].half() for official, ours in names.items()}, path)
    model.load_state_dict({name: tensor.half().to(tensor.dtype) for name, tensor in own.items()})
    return path, model.eval()


def test_coco_has_eighty_classes_with_its_own_ids() -> None:
    classes = coco_classes()
    assert len(classes) == 80
    assert (classes[0], classes[11], classes[-1]) == ((1, "person"), (13, "stop sign"), (90, "toothbrush"))


def test_a_published_checkpoint_becomes_a_detector(published: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path, model = published
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    evidence = package_checkpoint(path, "yolov7-tiny", tmp_path / "package", annotations=tmp_path / "classes.json")
    detector = Detector.load(tmp_path / "package")
    assert detector.classes == [(3, "disc"), (7, "cross")]
    assert evidence["imported"]["num_classes"] == 2
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(detector.model(images), deploy(model)(images), rtol=1e-4, atol=1e-3)
    further = read_trained(str(tmp_path / "package")).state  # what can be trained further is in the package too
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in further.items())


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "2 classes; name them with --classes"),
        ({"categories": []}, "names 0 classes"),
        ({}, "no COCO categories"),
    ],
)
def test_classes_must_be_known(content: dict | None, part: str, published, tmp_path: Path) -> None:
    annotations = None
    if content is not None:
        annotations = tmp_path / "classes.json"
        annotations.write_text(json.dumps(content))
    with pytest.raises(UserError, match=part):
        package_checkpoint(published[0], "yolov7-tiny", tmp_path / "package", annotations=annotations)


class Payload:
    def __reduce__(self):
        return (exec, ("open('executed', 'w')",))


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").write_bytes(pickle.dumps({"model": Payload()}))
    store = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    assert main(["registry", "import", "weights.pt", "--model", "yolov7", *store]) == 2
    assert "weights.pt" in capsys.readouterr().err
    assert not Path("executed").exists()
