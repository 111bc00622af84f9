"""Lineage of a version: version -> run -> job -> data manifests -> shards, and the version that it was fine-tuned from.

The manifests are stored in the version, so its lineage is whole even when run directory and data are gone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolofleet.core.local_files import read_regular
from yolofleet.data.manifest import Manifest
from yolofleet.registry.proof import LINEAGE_FOLDER
from yolofleet.registry.version_files import NoSuchPartError, version_part
from yolofleet.registry.versions import RegistryError, Version, find_version, list_versions

PARTS = ("train", "val")
SHORTEST_DIGEST = 6
MOST_MANIFEST_BYTES = 2**28
MOST_PARENTS = 50
PARENT_FACT = "initial_weights.parent"


@dataclass(frozen=True)
class DataSource:
    """A dataset that a version was trained on (``train``), or selected and evaluated by (``val``)."""

    part: str
    manifest_sha256: str
    url: str | None
    """Where it was; None where that is not recorded."""
    shards: tuple[tuple[str, str], ...] | None = field(repr=False)
    """(name, sha256) of each shard; None where the manifest is not in the version."""


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from; None where it is not recorded."""

    run_id: str | None
    """MLflow's id of the run that made it."""
    run_directory: str | None
    job_sha256: str | None
    """Digest of its job spec, which is in ``evidence.json``."""
    data: tuple[DataSource, ...]
    parents: tuple[str, ...]
    """The version that it was fine-tuned from, that one's parent, and so on."""

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        document = asdict(self)
        for source in document["data"]:
            source["shards"] = None if source["shards"] is None else dict(source["shards"])
        return document


@dataclass(frozen=True)
class DataUse:
    """A version, and how it used some data: for ``train``, ``val`` or both."""

    version: Version
    parts: tuple[str, ...]


def find_lineage(tracking_uri: str, version: Version) -> Lineage:
    """Follow a version back to its shards and its parents.

    Raises:
        TrackingError: MLflow does not answer.
    """
    manifests = _manifests(tracking_uri, version)
    sources = []
    for part in PARTS:
        digest = version.facts.get(f"data.{part}")
        if digest is None:
            continue
        shards = None
        if (data := manifests.get(part)) is not None and hashlib.sha256(data).hexdigest() == digest:
            manifest = Manifest.from_bytes(data, f"{version.uri}/{part}")
            shards = tuple((shard.name, shard.sha256) for shard in manifest.shards)
        sources.append(DataSource(part, digest, version.facts.get(f"data_url.{part}"), shards))
    return Lineage(
        run_id=version.run_id,
        run_directory=version.facts.get("run_directory"),
        job_sha256=version.facts.get("job_sha256"),
        data=tuple(sources),
        parents=tuple(_parents(tracking_uri, version)),
    )


def find_uses(tracking_uri: str, digest: str, name: str | None = None) -> list[DataUse]:
    """Return the versions that were trained on some data or evaluated by it.

    Args:
        tracking_uri: The MLflow server or database.
        digest: Of a manifest or of a shard; its first digits are enough.
        name: Only versions of this registered model.

    Raises:
        RegistryError: The text is not a digest, or several manifests begin with it.
    """
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_DIGEST},64}}", digest):
        raise RegistryError(f"{digest!r:.80} is not a digest: {SHORTEST_DIGEST} to 64 hexadecimal digits")
    versions = list_versions(tracking_uri, name)
    matches = {value for version in versions for value in _digests(version).values() if value.startswith(digest)}
    if len(matches) > 1:
        raise RegistryError(f"{digest} begins {len(matches)} manifests: {', '.join(sorted(matches))}; give more digits")
    wanted = matches or _manifests_with_shard(tracking_uri, versions, digest)
    uses = [
        DataUse(version, tuple(part for part, value in _digests(version).items() if value in wanted))
        for version in versions
    ]
    return [use for use in uses if use.parts]


def _digests(version: Version) -> dict[str, str]:
    return {part: version.facts[f"data.{part}"] for part in PARTS if f"data.{part}" in version.facts}


def _manifests_with_shard(tracking_uri: str, versions: list[Version], digest: str) -> set[str]:
    """Return the digests of the manifests that name a shard; each manifest is read once."""
    holding: set[str] = set()
    seen: set[str] = set()
    for version in versions:
        if set(_digests(version).values()) <= seen:
            continue
        for source in find_lineage(tracking_uri, version).data:
            if source.shards is None:
                continue
            seen.add(source.manifest_sha256)
            if any(sha256.startswith(digest) for _, sha256 in source.shards):
                holding.add(source.manifest_sha256)
    return holding


def _manifests(tracking_uri: str, version: Version) -> dict[str, bytes]:
    """Return the manifests in the files of a version, by part."""
    try:
        with version_part(tracking_uri, version, LINEAGE_FOLDER) as folder:
            return _read(folder / LINEAGE_FOLDER)
    except NoSuchPartError:
        return {}


def _read(folder: Path) -> dict[str, bytes]:
    paths = {part: folder / f"{part}.json" for part in PARTS}
    try:
        return {part: read_regular(path, MOST_MANIFEST_BYTES) for part, path in paths.items() if path.exists()}
    except OSError as error:
        raise RegistryError(f"{error.filename} cannot be read: {error.strerror}") from error


def _parents(tracking_uri: str, version: Version) -> list[str]:
    parents: list[str] = []
    parent = version.facts.get(PARENT_FACT)
    while parent is not None and parent not in parents and len(parents) < MOST_PARENTS:
        parents.append(parent)
        if not parent.startswith("models:/"):
            break  # a run, whose own parent is not recorded
        try:
            parent = find_version(tracking_uri, parent).facts.get(PARENT_FACT)
        except RegistryError:
            break  # it was deleted, or is in another registry
    return parents
