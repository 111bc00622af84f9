"""Loading a version with MLflow writes beside its files in a local store; the proof still holds, and only then."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from yolofleet.cli.main import main
from yolofleet.registry.claims import MLFLOW_NAME
from yolofleet.registry.evaluation_record import Evidence
from yolofleet.registry.register import register_detector
from yolofleet.registry.verify import verify
from yolofleet.registry.version_files import artifact_location, local_folder
from yolofleet.registry.versions import Version

pytestmark = pytest.mark.system

LOAD = """
import mlflow, shutil, sys
mlflow.set_tracking_uri(sys.argv[1])
for number, name in enumerate(("models:/shapes/1", "models:/shapes@candidate")):
    mlflow.pyfunc.load_model(name)
    shutil.copy(sys.argv[2], f"meta-{number}")
"""


def _compiled(_: str, target: str) -> None:
    Path(target).with_suffix(".pyc").write_bytes(b"code")


ADDED: dict[str, Callable[[Path], object]] = {
    "another version": lambda folder: (folder / MLFLOW_NAME).write_text("model_name: shapes\nmodel_version: '2'\n"),
    "another name": lambda folder: (folder / MLFLOW_NAME).write_text("model_name: other\nmodel_version: '1'\n"),
    "a line more": lambda folder: (folder / MLFLOW_NAME).write_bytes((folder / MLFLOW_NAME).read_bytes() + b"# more\n"),
    "nothing": lambda folder: (folder / MLFLOW_NAME).write_bytes(b""),
    "elsewhere": lambda folder: shutil.copy(folder / MLFLOW_NAME, folder / "data" / MLFLOW_NAME),
    "another file": lambda folder: (folder / "notes.txt").write_text("model_name: shapes\nmodel_version: '1'\n"),
    "compiled code": lambda folder: shutil.copytree(folder / "data", folder / "code", copy_function=_compiled),
}


@pytest.fixture(scope="module")
def loaded(detector_package: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Version]:
    """A store whose version was loaded by its number and by its alias, in a process of its own."""
    folder = tmp_path_factory.mktemp("loaded")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    version = register_detector(detector_package, "shapes", uri, Evidence(), alias="candidate")
    written = _files(uri, version) / MLFLOW_NAME
    subprocess.run([sys.executable, "-c", LOAD, uri, str(written)], check=True, cwd=folder)
    for number in range(2):
        shutil.copy(folder / f"meta-{number}", written)
        assert verify(uri, version).with_outcome("failed") == []
    return uri, version


def _files(uri: str, version: Version) -> Path:
    folder = local_folder(artifact_location(uri, version))
    assert folder is not None
    return folder


def test_a_loaded_version_is_verified(loaded: tuple[str, Version], capsys: pytest.CaptureFixture[str]) -> None:
    uri, version = loaded
    assert (_files(uri, version) / MLFLOW_NAME).is_file()
    main(["registry", "verify", version.uri, "--tracking-uri", uri])
    printed = capsys.readouterr().out
    assert "other files" in printed and "failed" not in printed.replace("0 failed", ""), printed


@pytest.mark.parametrize("kind", ADDED)
def test_what_mlflow_did_not_write_fails(kind: str, loaded: tuple[str, Version], tmp_path: Path) -> None:
    uri, version = loaded
    folder = _files(uri, version)
    kept = Path(shutil.copytree(folder, tmp_path / "kept"))
    try:
        ADDED[kind](folder)
        failed = verify(uri, version).with_outcome("failed")
        assert failed and "is not in the proof" in failed[0].detail, failed
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
