"""The files of a registered version on this machine, and the detector package among them.

The names that a server lists are not trusted: one that leads out of the folder (``../``, ``/etc/x``, a link) is refused
before anything is written.

**Requests.** Each folder is listed once, each file is one more request, several run at a time, and each is repeated for
a minute where its failure may pass by itself. A part that the proof names is fetched without a listing.

**Cache.** Files of versions on remote stores are kept, in a folder for each version, which belongs to this user alone.
The tag of the version names the digest of its proof, and the proof that of each file: a kept file counts only while it
has that digest, and is fetched again otherwise. `version_files` does not read the cache: what is verified is what the
store gives now.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING
from urllib.parse import unquote

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import DETECTOR_CARD_NAME
from yolofleet.core.local_files import CACHE_VARIABLE, cache_folder
from yolofleet.core.text import split_url
from yolofleet.registry.package import ARCHIVE_NAME, ARCHIVED, CODE_FOLDER, DETECTOR_FOLDER, open_archive
from yolofleet.registry.proof import PROOF_NAME, Proof, file_sha256, read_proof
from yolofleet.registry.versions import RegistryError, Version, find_version
from yolofleet.tracking.foreign_store import named_by_user, refuse_foreign
from yolofleet.tracking.mlflow_store import PATIENCE_SECONDS, check_reachable, find_tracking_uri, open_client, patiently

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

MOST_FILES = 10_000
NUM_CONNECTIONS = 6


class NoSuchPartError(RegistryError):
    """A version holds no such folder."""


def artifact_location(tracking_uri: str, version: Version) -> str:
    """Return where the files of a version are: a path or a URL."""
    find = partial(open_client(tracking_uri).get_model_version_download_uri, version.name, str(version.number))
    return str(patiently(tracking_uri, find))


def local_folder(location: str) -> Path | None:
    """Return the folder at a location on this machine's disk; None for any other location."""
    parts = split_url(location, RegistryError)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path) if location.startswith("file:") else location)


@contextmanager
def version_files(tracking_uri: str, version: Version) -> Iterator[Path]:
    """Give a folder with all files of a version as its store gives them now, and its archive unpacked among them.

    Raises:
        RegistryError: There are none, or a name leads out of the folder.
        TrackingError, TrackingFailureError: MLflow does not answer.
    """
    location = artifact_location(tracking_uri, version)
    local = local_folder(location)
    if local is not None and local.is_dir():
        check_inside(local)
        if (local / ARCHIVE_NAME).is_file():
            with TemporaryDirectory(prefix="yolofleet-version-") as links:
                _link_files(local, Path(links))
                open_archive(Path(links))
                yield Path(links)
        else:
            yield local
        return
    kept = _kept_folder(tracking_uri, version)
    with TemporaryDirectory(prefix=".tmp-", dir=kept.parent) as staging:
        folder = Path(staging, "files")
        download(tracking_uri, location, "", folder)
        open_archive(folder)
        yield folder
        if version.proof_sha256 is not None and _has_sha256(folder / PROOF_NAME, version.proof_sha256):
            with suppress(UserError):  # a proof that cannot be read
                _keep(folder, kept, (PROOF_NAME, *_named_files(read_proof(folder))))


@contextmanager
def version_part(tracking_uri: str, version: Version, part: str) -> Iterator[Path]:
    """Give a folder with a folder of a version's files and its proof; other files may be there, too.

    On remote stores the part comes from the cache, or is downloaded and checked against the proof.

    Args:
        tracking_uri: The MLflow server or database.
        version: The version.
        part: A folder below the version's own.

    Raises:
        NoSuchPartError: There is no such part.
        RegistryError: It is not what the proof names.
        TrackingError, TrackingFailureError: MLflow does not answer.
    """
    location = artifact_location(tracking_uri, version)
    local = local_folder(location)
    if local is not None and local.is_dir():
        with version_files(tracking_uri, version) as folder:
            yield folder
    else:
        yield _kept_part(tracking_uri, version, location, part)


def download(tracking_uri: str, location: str, part: str, target: Path) -> None:
    """Download a folder of a version's files and rename it when it is whole; several processes may do the same.

    Args:
        tracking_uri: The MLflow server or database.
        location: Where the version's files are; a ``models:/`` URI would depend on MLflow's global setting.
        part: The folder below it; "" for all.
        target: The new folder.

    Raises:
        RegistryError: There is no such folder, or a name leads out of it.
        TrackingError, TrackingFailureError: MLflow does not answer.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        repository = _open_repository(tracking_uri, location)
        _fetch(tracking_uri, repository, _list_files(tracking_uri, repository, location, part), staging)
        check_inside(staging)
        try:
            (staging / part).rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def at_once(action: Callable[[str], object], names: Iterable[str]) -> None:
    """Call an action with each name, a few at a time; the first failure is raised, and what has not begun is left."""
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        for _ in pool.map(action, names):
            pass


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


def detector_folder(models_uri: str, tracking_uri: str | None = None) -> Path:
    """Return the folder of a registered detector package.

    Files on this machine's disk are used there; others are downloaded once and kept.

    Args:
        models_uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``models:/NAME`` (the newest).
        tracking_uri: The MLflow server or database; by default MLFLOW_TRACKING_URI, else the one beside the runs.

    Raises:
        UserError: There is no such version, it holds no detector package, or MLflow refuses.
        TrackingFailureError: MLflow does not answer.
    """
    uri = find_tracking_uri(tracking_uri)
    check_reachable(uri)
    return detector_of_version(uri, find_version(uri, models_uri))


def detector_of_version(tracking_uri: str, version: Version) -> Path:
    """Return the folder of a version's detector package, as `detector_folder` does."""
    location = artifact_location(tracking_uri, version)
    local = local_folder(location)
    if local is None or not local.is_dir():
        local = _kept_part(tracking_uri, version, location, DETECTOR_FOLDER)
    if not (local / DETECTOR_FOLDER / DETECTOR_CARD_NAME).is_file():
        raise RegistryError(f"{version.uri} holds no detector package (no {DETECTOR_FOLDER}/{DETECTOR_CARD_NAME})")
    return local / DETECTOR_FOLDER


def _kept_folder(tracking_uri: str, version: Version) -> Path:
    """Return the folder of the cache for the files of a version.

    A tag that anybody may have set must not lead to the files of another version, hence all of its identity.
    """
    from yolofleet.data.cache_folder import own_folder

    own = own_folder(cache_folder() / "versions", setting=CACHE_VARIABLE)
    identity = (tracking_uri, version.name, version.number, version.created_milliseconds, version.digest)
    text = "\0".join(map(str, (*identity, version.proof_sha256)))
    return own / hashlib.sha256(text.encode()).hexdigest()[:32]


def _kept_part(tracking_uri: str, version: Version, location: str, part: str) -> Path:
    """Return the folder of the cache after fetching what it lacks of a part; the proof says what that is.

    A version without a tag that names its proof was not registered by yolofleet: its files are kept as they come.
    """
    kept = _kept_folder(tracking_uri, version)
    if version.proof_sha256 is None:
        if not (kept / part).is_dir():
            download(tracking_uri, location, part, kept / part)
        return kept
    repository = _open_repository(tracking_uri, location)

    def complete(digests: dict[str, str], sources: set[str]) -> None:
        with TemporaryDirectory(prefix=".tmp-", dir=kept.parent) as staging:
            folder = Path(staging)
            _fetch(tracking_uri, repository, sources, folder)
            open_archive(folder)
            for name, sha256 in digests.items():
                if not _has_sha256(folder / name, sha256):
                    cure = f"`yolofleet registry verify {version.name}/{version.number}` shows every change"
                    raise RegistryError(f"{version.uri}: {name} is not what the version's proof names; {cure}")
            for name in digests:
                (kept / name).unlink(missing_ok=True)
            _keep(folder, kept, digests)

    if not _has_sha256(kept / PROOF_NAME, version.proof_sha256):
        complete({PROOF_NAME: version.proof_sha256}, {PROOF_NAME})
    proof = read_proof(kept)
    wanted = {name: proof.files[name] for name in _named_files(proof) if name.startswith(f"{part}/")}
    if not wanted:
        raise NoSuchPartError(f"{version.uri} holds no {part}")
    lacking = {name: sha256 for name, sha256 in wanted.items() if not _has_sha256(kept / name, sha256)}
    if lacking:
        complete(lacking, {_source(name, proof) for name in lacking})
    return kept


def _source(name: str, proof: Proof) -> str:
    """Return the file of a store that holds a file of a version."""
    return ARCHIVE_NAME if proof.format > 1 and ARCHIVED.fullmatch(name) else name


def _named_files(proof: Proof) -> list[str]:
    """Return the names of all files in a proof, none of which leads out of the version's folder."""
    for name in proof.files:
        check_file_name(name, PROOF_NAME)
    return sorted(proof.files)


def _has_sha256(path: Path, sha256: str) -> bool:
    return path.is_file() and not path.is_symlink() and file_sha256(path) == sha256


def _keep(folder: Path, kept: Path, names: Iterable[str]) -> None:
    """Move files of a version to the cache; those that are there already stay."""
    for name in names:
        is_used = name != ARCHIVE_NAME and not name.startswith(f"{CODE_FOLDER}/")
        if is_used and (folder / name).is_file() and not (kept / name).exists():
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(kept / name)


def _link_files(folder: Path, target: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            link = target / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())


def _open_repository(tracking_uri: str, location: str) -> ArtifactRepository:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = patiently(tracking_uri, lambda: get_artifact_repository(location, tracking_uri))
    files, store = split_url(repository.artifact_uri), split_url(tracking_uri)
    is_beside = (files.scheme, files.hostname) == (store.scheme, store.hostname)  # MLflow's server of artifacts alone
    if files.scheme in ("http", "https") and not is_beside:  # MLflow would log in at any server
        refuse_foreign(repository.artifact_uri, (tracking_uri, named_by_user()), "the registry")
    return repository


def _list_files(tracking_uri: str, repository: ArtifactRepository, location: str, part: str) -> list[str]:
    waiting, num_seen = [part], 0
    files: list[str] = []
    while waiting:
        for entry in patiently(tracking_uri, partial(repository.list_artifacts, waiting.pop())):
            num_seen += 1
            if num_seen > MOST_FILES:
                raise RegistryError(f"{location}: holds more than {MOST_FILES:,} files; yolofleet did not write it")
            check_file_name(entry.path, location)
            (waiting if entry.is_dir else files).append(entry.path)
    if not files:
        raise NoSuchPartError(f"{location} holds no {part or 'files'}")
    return files


def _fetch(tracking_uri: str, repository: ArtifactRepository, names: Iterable[str], folder: Path) -> None:
    """Download files; MLflow's own `download_artifacts` would list each one first."""
    give_up = time.monotonic() + PATIENCE_SECONDS

    def fetch(name: str) -> None:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            patiently(tracking_uri, lambda: repository._download_file(name, str(path)), give_up=give_up)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise RegistryError(f"{name!r:.120} names a file and a folder: nothing was kept") from error

    at_once(fetch, sorted(set(names)))
