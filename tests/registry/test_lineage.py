"""A version leads back to its shards and its parents, and data leads forward to the versions that used it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from yolofleet.cli.main import main
from yolofleet.data.dataset import ShardDataset
from yolofleet.registry.evaluation_record import Evidence
from yolofleet.registry.lineage import find_lineage, find_uses
from yolofleet.registry.register import register_detector
from yolofleet.registry.versions import RegistryError, find_version

pytestmark = pytest.mark.system


@pytest.fixture
def store(registered_store: Path, tmp_path: Path) -> str:
    shutil.copy(registered_store / "mlflow.db", tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_a_version_leads_to_its_shards(store: str, known_data: Path) -> None:
    manifest = ShardDataset(known_data).manifest
    lineage = find_lineage(store, find_version(store, "shapes/1"))
    assert [source.part for source in lineage.data] == ["train", "val"]
    for source in lineage.data:
        assert source.manifest_sha256 == manifest.digest and source.url == str(known_data)
        assert source.shards == tuple((shard.name, shard.sha256) for shard in manifest.shards)
    assert lineage.parents == ()


def test_fine_tuned_versions_lead_to_all_their_parents(
    store: str, detector_package: Path, own_package: Path, trained_package: Path
) -> None:
    def tuned(folder: Path, parent: str) -> None:
        register_detector(folder, "tuned", store, Evidence({"initial_weights": {"parent": parent}}))

    tuned(detector_package, "models:/shapes/1")
    tuned(trained_package, "models:/tuned/1")
    (own_package / "notes.json").write_text("{}")
    tuned(own_package, "models:/elsewhere/4")
    assert find_lineage(store, find_version(store, "tuned/2")).parents == ("models:/tuned/1", "models:/shapes/1")
    foreign = find_lineage(store, find_version(store, "tuned/3"))
    assert foreign.parents == ("models:/elsewhere/4",) and foreign.data == ()


def test_data_leads_to_the_versions_that_used_it(store: str, known_data: Path, detector_package: Path) -> None:
    manifest = ShardDataset(known_data).manifest
    register_detector(detector_package, "other", store, Evidence({"data": {"val": manifest.digest, "train": "0" * 64}}))
    for digest in (manifest.digest, manifest.digest[:8], manifest.shards[0].sha256):
        uses = {use.version.uri: use.parts for use in find_uses(store, digest)}
        assert uses == {"models:/other/1": ("val",), "models:/shapes/1": ("train", "val")}
    assert [use.version.name for use in find_uses(store, "0" * 64)] == ["other"]
    assert find_uses(store, "1" * 64) == []
    assert find_uses(store, manifest.digest, "other")[0].parts == ("val",)
    for wrong in ("abc", "xyzxyzxyz", "A" * 64, ""):
        with pytest.raises(RegistryError, match="not a digest"):
            find_uses(store, wrong)


def test_the_commands(store: str, known_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = ShardDataset(known_data).manifest
    assert main(["registry", "show", "shapes/1", "--tracking-uri", store]) == 0
    shown = capsys.readouterr().out
    assert f"train: manifest {manifest.digest}" in shown and manifest.shards[0].sha256 in shown
    assert main(["registry", "show", "shapes/1", "--tracking-uri", store, "--json"]) == 0
    lineage = json.loads(capsys.readouterr().out)["lineage"]
    assert lineage["data"][0]["shards"] == {shard.name: shard.sha256 for shard in manifest.shards}
    arguments = ["registry", "list", "--tracking-uri", store, "--data"]
    assert main([*arguments, manifest.digest[:10]]) == 0
    assert capsys.readouterr().out.rstrip().endswith("trained on it and evaluated on it")
    assert main([*arguments, "f" * 64]) == 0
    assert "no version used data" in capsys.readouterr().err
    assert main([*arguments, "nothing"]) == 2
