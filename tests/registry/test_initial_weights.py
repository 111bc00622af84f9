"""A run starts from a registered version: an alias is read once, and a later start has the same weights."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

from yolofleet.cli.main import main
from yolofleet.cli.model_argument import resolve_weights
from yolofleet.core.errors import UserError
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.models import build_model, deploy
from yolofleet.registry import version_files, versions
from yolofleet.registry.evaluation_record import Evidence
from yolofleet.registry.proof import save_training_form
from yolofleet.registry.register import register_detector
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelChoice
from yolofleet.specs.yaml_document import write_yaml
from yolofleet.tracking.mlflow_store import open_client
from yolofleet.training.setup.preflight import Readiness, check_job

pytestmark = pytest.mark.system
CLASSES = [(3, "circle"), (7, "square"), (9, "tree")]
"""Those of `known_data`."""


@pytest.fixture(scope="module")
def other_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package as `trained_package`, of other weights."""
    torch.manual_seed(2)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
    model = build_model(choice, num_classes=len(CLASSES)).eval()
    folder = tmp_path_factory.mktemp("other") / "detector"
    save_detector(folder, deploy(model), CLASSES, 64, confidence=0.001, max_detections=20)
    save_training_form(folder, model)
    return folder


@pytest.fixture
def store(
    registered_store: Path,
    other_package: Path,
    detector_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """A store with shapes/1, the champion, shapes/2 of other weights, and folded/1 without a training form."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(registered_store / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert register_detector(other_package, "shapes", uri, Evidence({})).number == 2
    register_detector(detector_package, "folded", uri, Evidence({}))
    point(uri, 1)
    return uri


def point(store: str, version: int) -> None:
    open_client(store).set_registered_model_alias("shapes", "champion", str(version))


def job(weights: str, data: Path, store: str | None, name: str = "tuned", transition_width: float = 0.125) -> JobSpec:
    document = {
        "name": name,
        "model": {"name": "yolov7-tiny", "transition_width": transition_width, "hidden_width": 0.125},
        "data": {"train": str(data), "val": str(data), "image_size": 64},
        "recipe": "tiny",
        "epochs": 2,
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "initial_weights": weights,
        "tracking": {} if store is None else {"uri": store},
    }
    return JobSpec.parse(document, source="job").with_absolute_paths()


def start(spec: JobSpec, store: str | None) -> Readiness:
    return check_job(spec, partial(resolve_weights, tracking_uri=store))


def kept(ready: Readiness) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load(ready.run.storage.get("initial/model.safetensors")))


def test_a_later_start_has_the_weights_of_the_first_although_the_alias_moved(
    store: str, known_data: Path, trained_package: Path, other_package: Path
) -> None:
    spec = job("shapes@champion", known_data, store)
    first = start(spec, store)
    facts = first.run.facts()["initial_weights"]
    assert (facts["source"], facts["parent"]) == ("models:/shapes@champion", "models:/shapes/1")
    assert len(facts["sha256"]) == 64 and facts["tensors_fresh"] == 0
    trained = safetensors.torch.load_file(trained_package / "training.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in kept(first).items())
    point(store, 2)
    again = start(spec, store)
    assert again.run.facts()["initial_weights"] == facts
    assert all(torch.equal(tensor, trained[name]) for name, tensor in kept(again).items())
    other = safetensors.torch.load_file(other_package / "training.safetensors")
    moved = start(job("shapes@champion", known_data, store, "moved"), store)
    numbered = start(job("shapes/2", known_data, store, "numbered"), store)
    for ready in (moved, numbered):
        assert ready.run.facts()["initial_weights"]["parent"] == "models:/shapes/2"
        assert all(torch.equal(tensor, other[name]) for name, tensor in kept(ready).items())
    assert not torch.equal(other["head.lead.0.weight"], trained["head.lead.0.weight"])


def test_an_alias_that_moves_meanwhile_names_the_version_whose_files_were_read(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = version_files.artifact_location

    def move(tracking_uri: str, version: versions.Version) -> str:
        point(store, 2)
        return find(tracking_uri, version)

    monkeypatch.setattr(version_files, "artifact_location", move)
    folder, version = resolve_weights("models:/shapes@champion", store)
    assert version == "models:/shapes/1"
    assert folder == version_files.detector_folder("models:/shapes/1", store)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("shapes@nobody", r"initial_weights models:/shapes@nobody: .*aliases \['candidate', 'champion'\]"),
        ("shapes/7", r"initial_weights models:/shapes/7: .*has versions \[2, 1\]"),
        ("ships@champion", "there is no registered model 'ships'; there is: folded, shapes"),
        ("folded@candidate", "initial_weights models:/folded@candidate: .*holds the deployed form only"),
    ],
)
def test_what_cannot_be_a_start_is_named(weights: str, message: str, store: str, known_data: Path) -> None:
    with pytest.raises(UserError, match=message):
        start(job(weights, known_data, store), store)


def test_weights_of_another_model_are_refused(store: str, known_data: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"initial_weights models:/shapes/1: these are not weights of yolov7-tiny: .*use the same scaling factors",
    ):
        start(job("shapes/1", known_data, store, transition_width=0.25), store)


def test_without_a_registry_the_key_that_names_one_is_told(known_data: Path, tmp_path: Path, store: str) -> None:
    nowhere = f"sqlite:///{tmp_path}/nowhere.db"
    with pytest.raises(UserError, match=r"no MLflow store at .*nowhere\.db; name it with tracking\.uri"):
        start(job("shapes@champion", known_data, nowhere), nowhere)
    with pytest.raises(UserError, match="models:/shapes@champion: only 'yolofleet train' reads the registry"):
        check_job(job("shapes@champion", known_data, store))


def test_a_folder_of_that_name_is_a_path(store: str, known_data: Path, tmp_path: Path) -> None:
    (tmp_path / "shapes" / "1").mkdir(parents=True)
    assert job("shapes/1", known_data, store).initial_weights == str(tmp_path / "shapes" / "1")
    assert job("shapes/2", known_data, store).initial_weights == "models:/shapes/2"


def test_a_plan_says_which_version_it_would_be(
    store: str, known_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(write_yaml(job("shapes@champion", known_data, store).document()))
    assert main(["train", str(path), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["initial_weights"], plan["initial_version"]) == ("models:/shapes@champion", "models:/shapes/1")
    assert main(["train", str(path), "--plan"]) == 0
    assert "models:/shapes@champion, which is models:/shapes/1" in capsys.readouterr().out
    assert main(["train", str(path), "--plan", "initial_weights=shapes@nobody"]) == 2
    assert "initial_weights models:/shapes@nobody" in capsys.readouterr().err
