from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from storage.https_server import Page, serve_https
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
        (None, "2 classes and names none; name them with --classes"),
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


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[" * 100_000, "classes.json"),
        ('{"categories": [{"id": 1e400, "name": "x"}]}', "needs an 'id'"),
        ('{"categories": [{"id": "a", "name": "x"}]}', "id 'a' is text"),
        ('{"categories": [3]}', "needs an 'id'"),
        (None, "not a regular file"),
    ],
)
def test_classes_of_a_strangers_file_are_refused_in_one_line(
    content: str | None, part: str, published, tmp_path: Path
) -> None:
    path = tmp_path / "classes.json"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=part):
        package_checkpoint(published[0], "yolov7-tiny", tmp_path / "package", annotations=path)


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


def test_a_checkpoint_names_its_own_classes(published: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "named.pt"
    torch.save({"state_dict": torch.load(published[0]), "names": {0: "disc", 1: "cross"}}, path)
    facts = package_checkpoint(path, "yolov7-tiny", tmp_path / "package")["imported"]
    assert Detector.load(tmp_path / "package").classes == [(0, "disc"), (1, "cross")]
    assert facts["classes_named_by"] == "checkpoint"
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    package_checkpoint(path, "yolov7-tiny", tmp_path / "other", annotations=tmp_path / "classes.json")
    assert Detector.load(tmp_path / "other").classes == [(3, "disc"), (7, "cross")], "what is given goes first"


def test_a_wrong_model_names_the_one_that_fits_before_it_asks_for_classes(published, tmp_path: Path) -> None:
    match = r"weights\.pt: --model yolov7: these are not weights of yolov7 but of yolov7-tiny: choose that model"
    with pytest.raises(UserError, match=match):
        package_checkpoint(published[0], "yolov7", tmp_path / "package")
    with pytest.raises(UserError, match=r"not weights of yolov4-tiny but of yolov7-tiny"):
        package_checkpoint(published[0], "yolov4-tiny", tmp_path / "package")


def test_a_checkpoint_is_imported_from_its_url(
    published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    digest = hashlib.sha256(published[0].read_bytes()).hexdigest()
    monkeypatch.setenv("YOLOFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLOFLEET_URL_HOSTS", "localhost")
    with serve_https(tmp_path / "tls") as server:
        monkeypatch.setenv("SSL_CERT_FILE", server.authority)
        server.pages["/v7-tiny.pt"] = Page(published[0].read_bytes())
        url = f"{server.url}/v7-tiny.pt"
        rest = ["--model", "yolov7-tiny", "--classes", str(tmp_path / "classes.json")]
        rest += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
        assert main(["registry", "import", url, *rest]) == 2
        assert "--sha256 DIGEST, from its publisher" in capsys.readouterr().err
        assert main(["registry", "import", url, "--sha256", "abc", *rest]) == 2
        assert "64 hexadecimal digits" in capsys.readouterr().err
        assert main(["registry", "import", url, "--sha256", "0" * 64, *rest]) == 2
        assert f"its SHA-256 is {digest}" in capsys.readouterr().err
        assert main(["registry", "import", str(published[0]), "--sha256", "0" * 64, *rest]) == 2
        assert f"its SHA-256 is {digest}" in capsys.readouterr().err
        assert main(["registry", "import", url, "--sha256", digest, *rest]) == 0
        captured = capsys.readouterr()
        assert "models:/yolov7-tiny/1" in captured.out and f"fetching {url}" in captured.err
