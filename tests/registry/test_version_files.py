"""What a server names is not trusted: nothing is ever written outside the folder that was asked for."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from yolofleet.core.errors import UserError
from yolofleet.registry.evaluation_record import Evidence
from yolofleet.registry.import_checkpoint import package_checkpoint
from yolofleet.registry.version_files import check_file_name, download, version_files
from yolofleet.registry.versions import DIGEST_TAG, PROOF_TAG, RegistryError, find_version
from yolofleet.tracking.mlflow_store import open_client

pytestmark = pytest.mark.system

EVIL = ("../evil", "a/../../evil", "/tmp/evil", "..", "a\\..\\evil", "a\0b", "%2e%2e/evil", "")


@pytest.mark.parametrize("name", EVIL)
def test_a_name_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(RegistryError, match="nothing was written"):
        check_file_name(name, "s3://somewhere")


def test_plain_names_are_taken() -> None:
    for name in ("MLmodel", "data/detector/model.safetensors", "code/a b/c..d.py"):
        check_file_name(name, "here")


@pytest.mark.parametrize("evil", [name for name in EVIL if name])
def test_a_listing_that_leads_out_stops_the_download(
    evil: str, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.entities import FileInfo
    from mlflow.store.artifact import artifact_repository_registry
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    class Hostile(ArtifactRepository):  # type: ignore[misc]
        """Lists a good file, and an evil one in a folder below."""

        def list_artifacts(self, path: str | None = None) -> list[Any]:
            if not path:
                return [FileInfo("good.txt", False, 1), FileInfo("code", True, None)]
            return [FileInfo(evil, False, 1)]

        def _download_file(self, remote_file_path: str, local_path: str) -> None:
            Path(local_path).write_text("written")

        def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
            raise NotImplementedError

        def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
            raise NotImplementedError

    monkeypatch.setattr(
        artifact_repository_registry, "get_artifact_repository", lambda *_: Hostile("s3://somewhere/files")
    )
    target = tmp_path / "cache" / "deep" / "files"
    with pytest.raises(RegistryError, match="leads out of its folder"):
        download(tracking_uri, "s3://somewhere/files", "", target)
    assert list((tmp_path / "cache").rglob("*")) == [tmp_path / "cache" / "deep"]


def test_a_link_in_a_version_is_refused(
    detector_package: Path, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolofleet.registry.register import register_detector

    version = register_detector(detector_package, "shapes", tracking_uri, Evidence())
    own = tmp_path / "files"
    (own / "data").mkdir(parents=True)
    os.symlink("/etc/passwd", own / "data" / "notes.txt")
    monkeypatch.setattr("yolofleet.registry.version_files.artifact_location", lambda *_: str(own))
    with pytest.raises(RegistryError, match="is a link"), version_files(tracking_uri, version):
        pass


def test_a_digest_tag_is_no_path(detector_package: Path, tracking_uri: str) -> None:
    from yolofleet.registry.register import register_detector

    register_detector(detector_package, "shapes", tracking_uri, Evidence())
    for tag in (DIGEST_TAG, PROOF_TAG):
        open_client(tracking_uri).set_model_version_tag("shapes", "1", tag, "../../../home")
    version = find_version(tracking_uri, "shapes/1")
    assert version.digest is None and version.proof_sha256 is None


def test_no_tag_leads_to_what_another_version_left_in_the_cache(
    detector_package: Path, trained_package: Path, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolofleet.registry import version_files as resolve
    from yolofleet.registry.register import register_detector

    first = register_detector(detector_package, "shapes", tracking_uri, Evidence())
    register_detector(trained_package, "shapes", tracking_uri, Evidence())
    open_client(tracking_uri).set_model_version_tag("shapes", "2", DIGEST_TAG, str(first.digest))
    monkeypatch.setenv("YOLOFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(resolve, "local_folder", lambda location: None)  # as if they lay elsewhere
    kept = [resolve.detector_folder(f"models:/shapes/{number}", tracking_uri) for number in (1, 2)]
    for folder, package in zip(kept, (detector_package, trained_package), strict=True):
        assert (folder / "model.safetensors").read_bytes() == (package / "model.safetensors").read_bytes()


def test_an_archive_that_leads_out_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    checkpoint = tmp_path / "deep" / "evil.pt"
    checkpoint.parent.mkdir()
    with zipfile.ZipFile(checkpoint, "w") as archive:
        for name in ("../../evil.txt", "/tmp/yolofleet-evil.txt", "archive/../../data.pkl"):
            archive.writestr(name, "evil")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"evil\.pt"):
        package_checkpoint(checkpoint, "yolov7-tiny", tmp_path / "package")
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/yolofleet-evil.txt").exists()
