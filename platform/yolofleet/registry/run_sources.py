"""Which runs registered versions were made from: removing such a run would cut a version's lineage."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from yolofleet.core.errors import UserError
from yolofleet.registry.versions import list_versions
from yolofleet.specs.yaml_document import parse_yaml
from yolofleet.storage import Storage
from yolofleet.tracking.mlflow_store import check_reachable, default_tracking_uri, sqlite_path
from yolofleet.tracking.run_catalog import StoredRun
from yolofleet.tracking.run_directory import JOB_KEY, RELEASE_KEY


@dataclass
class RunSources:
    """Which runs registered versions were made from, as the runs themselves and their registries say."""

    versions: dict[str, list[str]] = field(default_factory=dict)
    """URL of a run directory -> references of versions."""
    unanswered: list[str] = field(default_factory=list)
    """A line for each registry that did not answer."""

    @classmethod
    def ask(cls, runs: Sequence[StoredRun], root: Storage, tracking_uri: str | None) -> RunSources:
        """Ask the registry that is given, else the environment's, and those that the runs' jobs name."""
        sources = cls()
        uris = {tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), default_tracking_uri(root.url)}
        for run in runs:
            storage = root.child(run.name)
            uris.add(_registry_of(storage, run))
            if (version := _released_version(storage, run)) is not None:
                sources.versions.setdefault(storage.url, []).append(version)
        for uri in sorted(filter(None, uris)):
            if (database := sqlite_path(uri)) is not None and not database.exists():
                continue  # nothing was ever registered there
            try:
                check_reachable(uri)
                for url, references in _sources_of_versions(uri).items():
                    known = sources.versions.setdefault(url, [])
                    known += [reference for reference in references if reference not in known]
            except UserError as error:
                sources.unanswered.append(f"not known whether it is registered: {error}")
        return sources

    def of(self, root: Storage, run: StoredRun) -> list[str]:
        """Return the versions that were made from a run."""
        return self.versions.get(root.child(run.name).url, [])

    def objection(self, root: Storage, run: StoredRun) -> str | None:
        """Return why a run must stay for the sake of a version's lineage, None where it need not."""
        if versions := self.of(root, run):
            return f"is the source of {', '.join(versions)}"
        return self.unanswered[0] if self.unanswered and run.kind == "run" else None


def _sources_of_versions(tracking_uri: str) -> dict[str, list[str]]:
    """Return the run directories that versions were made from, each with the references of its versions.

    Raises:
        TrackingError: MLflow does not answer.
    """
    found: dict[str, list[str]] = {}
    for version in list_versions(tracking_uri):
        if (run := version.facts.get("run_directory")) is not None:
            found.setdefault(run, []).append(version.uri)
    return found


def _registry_of(storage: Storage, run: StoredRun) -> str | None:
    """Return the MLflow URI that the job of a run names; None where it names none, or cannot be read.

    Args:
        storage: The run's directory.
        run: What it holds.
    """
    if not any(entry.key == JOB_KEY for entry in run.objects):
        return None
    document = parse_yaml(storage.get(JOB_KEY).decode(errors="replace"), source=f"{storage.url}/{JOB_KEY}")
    tracking = document.get("tracking") if isinstance(document, dict) else None
    uri = tracking.get("uri") if isinstance(tracking, dict) else None
    return uri if isinstance(uri, str) else None


def _released_version(storage: Storage, run: StoredRun) -> str | None:
    """Return the version that the command which trained a run registered, as its own record says; None for none."""
    if not any(entry.key == RELEASE_KEY for entry in run.objects):
        return None
    model = json.loads(storage.get(RELEASE_KEY)).get("model")
    return model if isinstance(model, str) else None
