"""From ``models:/NAME@ALIAS`` to a detector package on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import unquote, urlsplit

from yolofleet.registry.package import DETECTOR_FOLDER
from yolofleet.registry.versions import RegistryError, Version, find_version
from yolofleet.tracking.mlflow_store import check_reachable, find_tracking_uri, mlflow_errors, open_client
from yolofleet.tracking.run_directory import PACKAGE_INDEX

CACHE_VARIABLE = "YOLOFLEET_CACHE"
"""The folder that keeps downloaded detectors; ``~/.cache/yolofleet`` by default."""


def detector_folder(models_uri: str, tracking_uri: str | None = None) -> Path:
    """Return the folder of a registered detector package.

    Artifacts on this machine's disk are used where they lie; others are downloaded once and kept by their digest.

    Args:
        models_uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``models:/NAME`` (the newest).
        tracking_uri: The MLflow server or database; by default MLFLOW_TRACKING_URI, else the one beside the runs.

    Raises:
        UserError: There is no such version, it holds no detector package, or MLflow does not answer.
    """
    uri = find_tracking_uri(tracking_uri)
    check_reachable(uri)
    version = find_version(uri, models_uri)
    source = _artifact_location(uri, version)
    if urlsplit(source).scheme in ("", "file"):
        folder = Path(unquote(urlsplit(source).path) if source.startswith("file:") else source) / DETECTOR_FOLDER
        if folder.is_dir():
            return _checked(folder, version)
    kept = _cache_folder() / "detectors" / (version.digest or f"{version.name}-{version.number}")
    if not (kept / PACKAGE_INDEX).is_file():
        _download(uri, source, kept)
    return _checked(kept, version)


def _artifact_location(tracking_uri: str, version: Version) -> str:
    client = open_client(tracking_uri)
    with mlflow_errors(tracking_uri):
        return str(client.get_model_version_download_uri(version.name, str(version.number)))


def _download(tracking_uri: str, source: str, target: Path) -> None:
    """Download into a folder of its own and move it into place whole: another process may do the same.

    The artifacts are asked for by their place: MLflow looks a ``models:/`` URI up wherever its global setting points.
    """
    import mlflow

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        with mlflow_errors(tracking_uri):
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source.rstrip('/')}/{DETECTOR_FOLDER}", dst_path=str(staging), tracking_uri=tracking_uri
            )
        try:
            Path(found).rename(target)
        except OSError:
            if not (target / PACKAGE_INDEX).is_file():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _cache_folder() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolofleet"


def _checked(folder: Path, version: Version) -> Path:
    if not (folder / PACKAGE_INDEX).is_file():
        raise RegistryError(f"{version.uri} holds no detector package (no {DETECTOR_FOLDER}/{PACKAGE_INDEX})")
    return folder
