"""From ``models:/NAME@ALIAS`` to a detector package on this machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from yolofleet.registry.package import DETECTOR_FOLDER
from yolofleet.registry.version_files import artifact_location, download, local_folder
from yolofleet.registry.versions import RegistryError, Version, find_version
from yolofleet.tracking.mlflow_store import check_reachable, find_tracking_uri
from yolofleet.tracking.run_directory import PACKAGE_INDEX

CACHE_VARIABLE = "YOLOFLEET_CACHE"
"""The folder that keeps downloaded detectors; ``~/.cache/yolofleet`` by default."""


def detector_folder(models_uri: str, tracking_uri: str | None = None) -> Path:
    """Return the folder of a registered detector package.

    Artifacts on this machine's disk are used where they lie; others are downloaded once and kept.

    Args:
        models_uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``models:/NAME`` (the newest).
        tracking_uri: The MLflow server or database; by default MLFLOW_TRACKING_URI, else the one beside the runs.

    Raises:
        UserError: There is no such version, it holds no detector package, or MLflow does not answer.
    """
    uri = find_tracking_uri(tracking_uri)
    check_reachable(uri)
    version = find_version(uri, models_uri)
    location = artifact_location(uri, version)
    local = local_folder(location)
    if local is not None and (local / DETECTOR_FOLDER).is_dir():
        return _checked(local / DETECTOR_FOLDER, version)
    # The digest is a tag that anybody may have set: it must not lead to what another version left.
    identity = f"{uri}\0{version.name}\0{version.number}\0{version.created_milliseconds}\0{version.digest}"
    kept = _cache_folder() / "detectors" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if not (kept / PACKAGE_INDEX).is_file():
        download(uri, location, DETECTOR_FOLDER, kept)
    return _checked(kept, version)


def _cache_folder() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolofleet"


def _checked(folder: Path, version: Version) -> Path:
    if not (folder / PACKAGE_INDEX).is_file():
        raise RegistryError(f"{version.uri} holds no detector package (no {DETECTOR_FOLDER}/{PACKAGE_INDEX})")
    return folder
