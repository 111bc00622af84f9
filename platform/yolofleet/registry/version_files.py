"""The files of a registered version on this machine, and the detector package among them.

The names that a server lists are not trusted: one that leads out of the folder (``../``, ``/etc/x``, a link) is refused
before anything is written.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from yolofleet.core.file_names import DETECTOR_CARD_NAME
from yolofleet.core.local_files import cache_folder
from yolofleet.registry.package import DETECTOR_FOLDER
from yolofleet.registry.versions import RegistryError, Version, find_version
from yolofleet.tracking.mlflow_store import check_reachable, find_tracking_uri, mlflow_errors, open_client

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

MOST_FILES = 10_000


def artifact_location(tracking_uri: str, version: Version) -> str:
    """Return where the files of a version are: a path or a URL."""
    client = open_client(tracking_uri)
    with mlflow_errors(tracking_uri):
        return str(client.get_model_version_download_uri(version.name, str(version.number)))


def local_folder(location: str) -> Path | None:
    """Return the folder at a location on this machine's disk; None for any other location."""
    if urlsplit(location).scheme not in ("", "file"):
        return None
    return Path(unquote(urlsplit(location).path) if location.startswith("file:") else location)


@contextmanager
def version_files(tracking_uri: str, version: Version) -> Iterator[Path]:
    """Give a folder with all files of a version: the stored ones on this disk, or a new download, never a cache.

    Raises:
        RegistryError: There are none, or a name leads out of the folder.
        TrackingError: MLflow does not answer.
    """
    location = artifact_location(tracking_uri, version)
    local = local_folder(location)
    if local is not None and local.is_dir():
        check_inside(local)
        yield local
        return
    with TemporaryDirectory(prefix="yolofleet-version-") as folder:
        download(tracking_uri, location, "", Path(folder) / "files")
        yield Path(folder) / "files"


def download(tracking_uri: str, location: str, part: str, target: Path) -> None:
    """Download a folder of a version's files and rename it when it is whole; several processes may do the same.

    Args:
        tracking_uri: The MLflow server or database.
        location: Where the version's files are; a ``models:/`` URI would depend on MLflow's global setting.
        part: The folder below it; "" for all.
        target: The new folder.

    Raises:
        RegistryError: There is no such folder, or a name leads out of it.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        with mlflow_errors(tracking_uri):
            repository = get_artifact_repository(location, tracking_uri)
            _check_names(repository, location, part)
            downloaded = repository.download_artifacts(part, str(staging))
        check_inside(staging)
        try:
            Path(downloaded).rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_file_name(name: str, where: str) -> None:
    """Raise `RegistryError` for a name that leads out of its folder, or is not plain."""
    path = PurePosixPath(name)
    plain = "\\" not in name and "\0" not in name and "%" not in name
    if not name or path.is_absolute() or ".." in path.parts or not plain:
        raise RegistryError(f"{where} names a file {name!r:.120}, which leads out of its folder: nothing was written")


def check_inside(folder: Path) -> None:
    """Raise `RegistryError` where anything in a folder is a link or no plain file."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RegistryError(f"{path}: is a link or no plain file; a version holds plain files only")


def _check_names(repository: ArtifactRepository, location: str, part: str) -> None:
    waiting, num_seen = [part], 0
    while waiting:
        for entry in repository.list_artifacts(waiting.pop()):
            num_seen += 1
            if num_seen > MOST_FILES:
                raise RegistryError(f"{location}: holds more than {MOST_FILES:,} files; yolofleet did not write it")
            check_file_name(entry.path, location)
            if entry.is_dir:
                waiting.append(entry.path)
    if not num_seen:
        raise RegistryError(f"{location} holds no {part or 'files'}")


def detector_folder(models_uri: str, tracking_uri: str | None = None) -> Path:
    """Return the folder of a registered detector package.

    Files on this machine's disk are used there; others are downloaded once and kept.

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
        return _check_package(local / DETECTOR_FOLDER, version)
    # The digest is a tag that anybody may have set: it alone must not lead to the files of another version.
    identity = f"{uri}\0{version.name}\0{version.number}\0{version.created_milliseconds}\0{version.digest}"
    kept = cache_folder() / "detectors" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if not (kept / DETECTOR_CARD_NAME).is_file():
        download(uri, location, DETECTOR_FOLDER, kept)
    return _check_package(kept, version)


def _check_package(folder: Path, version: Version) -> Path:
    if not (folder / DETECTOR_CARD_NAME).is_file():
        raise RegistryError(f"{version.uri} holds no detector package (no {DETECTOR_FOLDER}/{DETECTOR_CARD_NAME})")
    return folder
