"""Versions are registered once, found by every kind of reference, and predict where yolofleet is not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolofleet.cli.registry import app
from yolofleet.core.errors import UserError
from yolofleet.evaluation.detector import Detector
from yolofleet.registry.evaluation_record import Evidence
from yolofleet.registry.register import register_detector, register_run
from yolofleet.registry.release import run_evidence
from yolofleet.registry.version_files import detector_folder, version_files
from yolofleet.registry.versions import (
    ModelTags,
    RegistryError,
    browse_versions,
    check_alias,
    check_name,
    find_version,
    list_versions,
    parse_reference,
)
from yolofleet.storage import open_storage
from yolofleet.tracking.mlflow_store import TrackingError, open_client
from yolofleet.tracking.run_directory import RunDirectory

pytestmark = pytest.mark.system

EVIDENCE = {"figures": {"AP": 0.5, "AP50": 0.75}, "data": {"train": "sha256:ab"}}

# Runs in an interpreter that cannot import yolofleet, as if it were not installed.
PREDICT = """
import importlib.abc, json, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "yolofleet":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/shapes@candidate")
json.dump(model.predict([numpy.load(path) for path in sys.argv[2:]]), sys.stdout)
"""


@pytest.mark.system
def test_a_version_predicts_in_an_empty_folder_without_yolofleet(
    detector_package: Path, tracking_uri: str, images: list[Any], tmp_path: Path
) -> None:
    register_detector(detector_package, "shapes", tracking_uri, Evidence(EVIDENCE))
    paths = [tmp_path / f"{index}.npy" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        np.save(path, image)
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-I", "-c", PREDICT, tracking_uri, *map(str, paths)]
    answer = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == Detector.load(detector_package).predict(images)
    assert list(empty.iterdir()) == []


def test_the_same_detector_is_registered_once(detector_package: Path, own_package: Path, tracking_uri: str) -> None:
    first = register_detector(detector_package, "shapes", tracking_uri, Evidence(EVIDENCE))
    assert (first.number, first.aliases, first.run_id) == (1, ("candidate",), None)
    assert first.facts == {"data.train": "sha256:ab", "figures.AP": "0.5", "figures.AP50": "0.75"}
    assert register_detector(detector_package, "shapes", tracking_uri, Evidence(EVIDENCE)) == first
    card = own_package / "detector.json"
    card.write_text(card.read_text().replace('"circle"', '"circlet"'))
    second = register_detector(own_package, "shapes", tracking_uri, Evidence())
    assert (second.number, second.aliases) == (2, ("candidate",))
    assert find_version(tracking_uri, "shapes/1").aliases == ()
    assert [version.number for version in list_versions(tracking_uri)] == [2, 1]
    assert browse_versions(tracking_uri) == list_versions(tracking_uri)
    assert browse_versions(tracking_uri, "shapes") == list_versions(tracking_uri, "shapes")


def test_a_registration_that_was_cut_off_is_finished(
    detector_package: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    with monkeypatch.context() as patch:
        patch.setattr(
            mlflow.MlflowClient, "set_registered_model_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            register_detector(detector_package, "shapes", tracking_uri, Evidence(EVIDENCE))
    again = register_detector(detector_package, "shapes", tracking_uri, Evidence(EVIDENCE))
    assert (again.number, again.aliases) == (1, ("candidate",))


def test_every_reference_finds_its_version(detector_package: Path, tracking_uri: str) -> None:
    register_detector(detector_package, "shapes", tracking_uri, Evidence(EVIDENCE))
    for reference in (
        "models:/shapes@candidate",
        "models:/shapes/1",
        "models:/shapes/latest",
        "models:/shapes",
        "shapes/1",
    ):
        folder = detector_folder(reference, tracking_uri)
        assert (folder / "model.safetensors").read_bytes() == (detector_package / "model.safetensors").read_bytes()
    for reference, complaint in (
        ("models:/shapes@champion", r"versions \[1\] and aliases \['candidate'\]"),
        ("models:/shapes/7", "no such version"),
        ("models:/squares@candidate", "there is: shapes"),
    ):
        with pytest.raises(RegistryError, match=complaint):
            detector_folder(reference, tracking_uri)


def test_references_names_and_aliases() -> None:
    assert parse_reference("models:/a b@champion") == ("a b", "champion", None)
    assert parse_reference("models:/a/12") == ("a", None, 12)
    for wrong in ("models:/", "models:/a/b/c", "models:/a@b@c", "a/x", ""):
        with pytest.raises(RegistryError, match="NAME@ALIAS"):
            parse_reference(wrong)
    check_alias("champion-2")
    for wrong in ("v1", "latest", "a b", "", "1"):
        with pytest.raises(RegistryError, match="alias"):
            check_alias(wrong)
    check_name("yolov7 coco.v2")
    for wrong in ("", " a", "a/b", "a:b", "it's", "a" * 201, "a\n"):
        with pytest.raises(RegistryError, match="cannot name"):
            check_name(wrong)


def test_a_run_is_registered_with_its_facts(detector_package: Path, tracking_uri: str, tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path / "runs" / "demo"))
    run.write_job("name: demo\n")
    run.append_metrics({"step": 1, "loss": 0.5})
    run.record_facts(figures={"AP": 0.25}, contents={"model": "a" * 64})
    run.save_model(detector_package)
    run.storage.put("report/index.html", b"<html>")
    run.close()
    version = register_run(run, "shapes", tracking_uri)
    digest = hashlib.sha256(b"name: demo\n").hexdigest()
    assert version.facts == {"figures.AP": "0.25", "run_directory": run.url, "job_sha256": digest}
    with version_files(tracking_uri, version) as files:
        assert json.loads((files / "evidence.json").read_text())["evidence"]["job"] == {"name": "demo"}
        assert (files / "evaluation/report.html").read_bytes() == b"<html>"
    assert version.run_id is not None
    entry = open_client(tracking_uri).get_model_version("shapes", "1")
    assert entry.tags.keys() == {
        "yolofleet.digest", "yolofleet.proof_sha256", "yolofleet.figures.AP", "yolofleet.run_directory",
        "yolofleet.job_sha256",
    }  # fmt: skip
    for part in ("proof: ", " files, written ", "models:/shapes@candidate", f"run_uuid={version.run_id}"):
        assert part in entry.description
    assert open_client(tracking_uri).get_run(version.run_id).data.metrics == {"loss/total": 0.5}
    assert register_run(run, "shapes", tracking_uri).number == 1


@pytest.mark.parametrize("key", ["report/judgement.json", "report/detections.json"])
@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b"3", b"null"])
def test_a_run_whose_evaluation_is_damaged_is_not_registered(tmp_path: Path, key: str, data: bytes) -> None:
    run = RunDirectory(open_storage(tmp_path / "runs" / "demo"))
    for name in ("report/judgement.json", "report/detections.json"):
        run.storage.put(name, data if name == key else b"[]")
    with pytest.raises(UserError, match="report/judgement.json" if data in (b"3", b"null") else key):
        run_evidence(run)


def test_without_a_store_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match="--tracking-uri"):
        detector_folder("models:/shapes@candidate")
    with pytest.raises(TrackingError, match=r"no MLflow store at .*typo"):
        detector_folder("models:/shapes@candidate", f"sqlite:///{tmp_path}/typo.db")
    assert list(tmp_path.iterdir()) == []


def test_a_package_is_registered_where_the_other_commands_look(
    detector_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    app(args=["register", str(detector_package), "--name", "shapes"], standalone_mode=False)
    app(args=["list"], standalone_mode=False)
    assert "models:/shapes/1" in capsys.readouterr().out and (tmp_path / "runs/_mlflow/mlflow.db").is_file()


def test_the_commands(detector_package: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        app(args=[*arguments, "--tracking-uri", tracking_uri], standalone_mode=False)
        return capsys.readouterr().out

    registered = json.loads(run("register", str(detector_package), "--name", "shapes", "--json"))
    assert registered["uri"] == "models:/shapes/1" and registered["aliases"] == ["candidate"]
    ModelTags(tracking_uri, "shapes").set_alias("champion", 1)
    head, row = (line.split() for line in run("list").splitlines())
    assert head == ["VERSION", "REGISTERED", "AP", "AP50", "ALIASES"]
    assert (row[0], *row[3:]) == ("models:/shapes/1", "-", "-", "@candidate", "@champion")
    shown = json.loads(run("show", "shapes@champion", "--json"))
    assert shown.pop("lineage")["run_id"] is None
    assert shown == {**registered, "aliases": ["candidate", "champion"]}
    with pytest.raises(UserError, match="no registered model 'squares'"):
        run("show", "squares")
    with pytest.raises(UserError, match="/nowhere"):
        run("register", "/nowhere", "--name", "shapes")
    assert not Path("/nowhere").exists()
