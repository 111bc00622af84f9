"""Files of versions on a remote store: each is asked for once, kept while it is what the proof names, tried again."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from requests.exceptions import ConnectionError as BrokenConnectionError

from registry.archives import unpacked
from yolofleet.cli.main import main
from yolofleet.core import retry
from yolofleet.core.errors import UserError
from yolofleet.data.dataset import ShardDataset
from yolofleet.registry import version_files as resolve
from yolofleet.registry.comparison import evaluate_version
from yolofleet.registry.lineage import find_lineage
from yolofleet.registry.package import ARCHIVE_NAME
from yolofleet.registry.proof import PROOF_NAME, file_sha256
from yolofleet.registry.versions import PROOF_TAG, RegistryError, Version, find_version
from yolofleet.tracking import mlflow_store
from yolofleet.tracking.mlflow_store import TrackingFailureError, open_client

pytestmark = pytest.mark.system

WEIGHTS = "data/detector/model.safetensors"


class RemoteStore:
    """The files of a local store, as if they lay elsewhere; every request is counted.

    Attributes:
        files: Where they are.
        artifact_uri: The same for MLflow.
        requests: How often each folder was listed and each file fetched.
        failures: Failures that the next requests for a name meet.
    """

    def __init__(self, files: Path) -> None:
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        self.files = files
        self.artifact_uri = files.as_uri()
        self.requests: Counter[str] = Counter()
        self.failures: dict[str, list[Exception]] = {}
        self._local = LocalArtifactRepository(str(files))

    def list_artifacts(self, path: str) -> Any:
        self._meet(f"{path}/")
        return self._local.list_artifacts(path)

    def _download_file(self, name: str, path: str) -> None:
        self._meet(name)
        self._local._download_file(name, path)

    def _meet(self, name: str) -> None:
        self.requests[name] += 1
        if self.failures.get(name):
            raise self.failures[name].pop(0)


@pytest.fixture
def remote(registered_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Version, RemoteStore]:
    """A store with one version, whose files can only be downloaded."""
    from mlflow.store.artifact import artifact_repository_registry

    shutil.copy(registered_store / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    version = find_version(uri, "shapes/1")
    files = resolve.local_folder(resolve.artifact_location(uri, version))
    assert files is not None
    store = RemoteStore(Path(shutil.copytree(files, tmp_path / "files")))
    monkeypatch.setattr(artifact_repository_registry, "get_artifact_repository", lambda *_: store)
    monkeypatch.setattr(resolve, "local_folder", lambda location: None)
    monkeypatch.setenv(resolve.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    return uri, version, store


def read_all(uri: str, version: Version) -> set[str]:
    with resolve.version_files(uri, version) as folder:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_files_are_one_request_each_and_one_for_each_folder(remote: tuple[str, Version, RemoteStore]) -> None:
    uri, version, store = remote
    found = read_all(uri, version)
    assert {WEIGHTS, "evidence.json", "lineage/train.json", PROOF_NAME, ARCHIVE_NAME} <= found
    assert set(store.requests.values()) == {1} and sum(store.requests.values()) <= 15, store.requests
    assert {name for name in store.requests if name.endswith("/")} == {"/", "data/", "data/detector/"}


def test_what_was_downloaded_once_is_kept(remote: tuple[str, Version, RemoteStore], known_data: Path) -> None:
    uri, version, store = remote
    dataset = ShardDataset(known_data)
    recorded = evaluate_version(uri, version, dataset, "cpu")
    assert store.requests == {PROOF_NAME: 1, ARCHIVE_NAME: 1}
    assert evaluate_version(uri, version, dataset, "cpu").record == recorded.record
    assert resolve.detector_folder(version.uri, uri).joinpath("model.safetensors").is_file()
    once = {PROOF_NAME, ARCHIVE_NAME, WEIGHTS, "data/detector/detector.json", "data/detector/training.safetensors"}
    assert store.requests == dict.fromkeys(once, 1)
    assert resolve.detector_folder(version.uri, uri).joinpath("detector.json").is_file()
    assert store.requests == dict.fromkeys(once, 1)
    versions = Path(os.environ[resolve.CACHE_VARIABLE]) / "versions"
    assert stat.S_IMODE(versions.stat().st_mode) == 0o700
    assert not [path for path in versions.rglob("*") if path.name.startswith(".tmp-") or path.suffix == ".py"]


def test_what_was_verified_needs_no_request(remote: tuple[str, Version, RemoteStore], known_data: Path) -> None:
    uri, version, store = remote
    read_all(uri, version)
    store.requests.clear()
    evaluate_version(uri, version, ShardDataset(known_data), "cpu")
    assert find_lineage(uri, version).data[0].shards
    resolve.detector_folder(version.uri, uri)
    assert not store.requests
    read_all(uri, version)
    assert store.requests[WEIGHTS] == 1, "what is verified is what the store gives now"


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_a_kept_file_that_changed_is_fetched_again(
    remote: tuple[str, Version, RemoteStore], spoil: Callable[[Path], object]
) -> None:
    uri, version, store = remote
    folder = resolve.detector_folder(version.uri, uri)
    for name, kept in ((WEIGHTS, folder / "model.safetensors"), (PROOF_NAME, folder.parents[1] / PROOF_NAME)):
        before = kept.read_bytes()
        store.requests.clear()
        spoil(kept)
        resolve.detector_folder(version.uri, uri)
        assert kept.read_bytes() == before and store.requests == {name: 1}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(store.files / WEIGHTS)
    resolve.detector_folder(version.uri, uri)
    assert not (folder / "model.safetensors").is_symlink()


def test_a_store_that_was_changed_is_noticed_whatever_is_kept(
    remote: tuple[str, Version, RemoteStore],
    known_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri, version, store = remote
    read_all(uri, version)
    with unpacked(store.files):
        code = next((store.files / "code").rglob("nms.py"))
        code.write_text(code.read_text() + "import os\n")
    weights = bytearray((store.files / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (store.files / WEIGHTS).write_bytes(weights)
    command = ["registry", "verify", version.uri, "--tracking-uri", uri, "--data", "/nowhere"]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "nms.py has sha256" in printed and f"{WEIGHTS} has sha256" in printed
    resolve.detector_folder(version.uri, uri)  # what is kept is still what the proof names

    monkeypatch.setenv(resolve.CACHE_VARIABLE, str(tmp_path / "another"))
    with pytest.raises(RegistryError, match=rf"{WEIGHTS} is not what the version's proof names.*verify shapes/1"):
        resolve.detector_folder(version.uri, uri)
    (store.files / PROOF_NAME).write_text("{}")
    monkeypatch.setenv(resolve.CACHE_VARIABLE, str(tmp_path / "yet another"))
    with pytest.raises(RegistryError, match=rf"{PROOF_NAME} is not what"):
        resolve.detector_folder(version.uri, uri)
    with pytest.raises(UserError, match=PROOF_NAME):  # neither record nor weights are taken
        evaluate_version(uri, version, ShardDataset(known_data), "cpu")


@pytest.mark.parametrize("name", ["../../evil", "/tmp/yolofleet-evil", "data/detector/../../../evil"])
def test_a_proof_names_no_file_outside_of_the_version(name: str, remote: tuple[str, Version, RemoteStore]) -> None:
    uri, version, store = remote
    proof = json.loads((store.files / PROOF_NAME).read_text())
    proof["files"][name] = "0" * 64
    (store.files / PROOF_NAME).write_text(json.dumps(proof))
    open_client(uri).set_model_version_tag("shapes", "1", PROOF_TAG, file_sha256(store.files / PROOF_NAME))
    with pytest.raises(RegistryError, match="leads out of its folder"):
        resolve.detector_folder(version.uri, uri)
    assert set(store.requests) == {PROOF_NAME}
    read_all(uri, find_version(uri, version.uri))  # and verification keeps nothing of it


def test_a_folder_that_others_may_write_to_is_no_cache(remote: tuple[str, Version, RemoteStore]) -> None:
    uri, version, _ = remote
    folder = Path(os.environ[resolve.CACHE_VARIABLE]) / "versions"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(UserError, match=rf"{resolve.CACHE_VARIABLE} .*can be used by others"):
        resolve.detector_folder(version.uri, uri)


def test_a_failure_that_passes_is_not_noticed(remote: tuple[str, Version, RemoteStore]) -> None:
    uri, version, store = remote
    store.failures = {name: [BrokenConnectionError("reset")] * 2 for name in (WEIGHTS, "data/", ARCHIVE_NAME)}
    assert WEIGHTS in read_all(uri, version)
    assert [store.requests[name] for name in store.failures] == [3, 3, 3]


def test_a_failure_that_stays_ends_in_time_and_says_that_it_may_pass(
    remote: tuple[str, Version, RemoteStore], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, version, store = remote
    for module in (mlflow_store, resolve):
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    store.failures[WEIGHTS] = [BrokenConnectionError("reset")] * 1000
    with pytest.raises(TrackingFailureError, match=r"reset.*run the same command again"):
        read_all(uri, version)
    assert main(["registry", "verify", version.uri, "--tracking-uri", uri]) == 1
    assert "failed: MLflow at" in capsys.readouterr().err
    assert not list((Path(os.environ[resolve.CACHE_VARIABLE]) / "versions").rglob("*"))


def test_what_mlflow_refuses_is_asked_for_once(remote: tuple[str, Version, RemoteStore]) -> None:
    uri, version, store = remote
    (store.files / WEIGHTS).unlink()
    with pytest.raises(UserError, match="No such artifact"):
        resolve.detector_folder(version.uri, uri)
    assert store.requests[WEIGHTS] == 1
