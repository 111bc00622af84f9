"""Which runs registered versions were made from: removing such a run would cut a version's lineage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from yolofleet.core.errors import UserError
from yolofleet.core.text import one_line
from yolofleet.registry.versions import browse_versions
from yolofleet.specs.yaml_document import parse_yaml
from yolofleet.storage import Storage
from yolofleet.tracking.foreign_store import named_by_user, refuse_foreign
from yolofleet.tracking.mlflow_store import check_reachable, default_tracking_uri, sqlite_path
from yolofleet.tracking.run_catalog import StoredRun
from yolofleet.tracking.run_directory import JOB_KEY, RELEASE_KEY

UNKNOWN = "not known whether it is registered"
MOST_BYTES = 8 << 20
"""Of a job, or of the record of a release."""
MOST_UNANSWERED = 5
"""After so many the other registries are not asked: each may take its time, and one is enough to keep all runs."""


@dataclass
class RunSources:
    """Which runs registered versions were made from, as the runs themselves and their registries say."""

    versions: dict[str, list[str]] = field(default_factory=dict)
    """URL of a run directory -> references of versions."""
    unanswered: list[str] = field(default_factory=list)
    """A line for each registry that did not answer."""

    @classmethod
    def ask(cls, runs: Sequence[StoredRun], root: Storage, tracking_uri: str | None) -> RunSources:
        """Ask the registry that is given, else the environment's, and those that the runs' jobs name.

        A job may be a stranger's: the server that it names gets no credentials, and its sqlite file is only read.
        """
        sources = cls()
        own = named_by_user(tracking_uri)
        named: dict[str, str] = {}
        for run in runs:
            storage = root.child(run.name)
            try:
                if (uri := _registry_of(storage, run)) is not None:
                    named.setdefault(uri, f"{storage.url}/{JOB_KEY}")
                if (version := _released_version(storage, run)) is not None:
                    sources.versions.setdefault(storage.url, []).append(version)
            except UserError as error:
                sources.unanswered.append(f"{UNKNOWN}: {error}")
        for uri in dict.fromkeys(filter(None, (own, default_tracking_uri(root.url), *sorted(named)))):
            if len(sources.unanswered) >= MOST_UNANSWERED:
                break
            if (database := sqlite_path(uri)) is not None and not database.exists():
                continue  # nothing was ever registered there
            try:
                if uri != own:
                    refuse_foreign(uri, (own,), named.get(uri, root.url))
                check_reachable(uri)
                for url, references in _sources_of_versions(uri, is_own=uri == own).items():
                    known = sources.versions.setdefault(url, [])
                    known += [reference for reference in references if reference not in known]
            except UserError as error:
                sources.unanswered.append(f"{UNKNOWN}: {error}")
        return sources

    def of(self, root: Storage, run: StoredRun) -> list[str]:
        """Return the versions that were made from a run."""
        return self.versions.get(root.child(run.name).url, [])

    def objection(self, root: Storage, run: StoredRun) -> str | None:
        """Return why a run must stay for the sake of a version's lineage, None where it need not."""
        if versions := self.of(root, run):
            return f"is the source of {', '.join(versions)}"
        return self.unanswered[0] if self.unanswered and run.kind == "run" else None


def _sources_of_versions(tracking_uri: str, *, is_own: bool) -> dict[str, list[str]]:
    """Return the run directories that versions were made from, each with the references of its versions.

    Args:
        tracking_uri: The MLflow server or database.
        is_own: Whether the user names it; MLflow itself, which may change a database, opens no other file.

    Raises:
        TrackingError: MLflow does not answer.
    """
    found: dict[str, list[str]] = {}
    for version in browse_versions(tracking_uri, may_load_mlflow=is_own):
        if (run := version.facts.get("run_directory")) is not None:
            found.setdefault(run, []).append(version.uri)
    return found


def _registry_of(storage: Storage, run: StoredRun) -> str | None:
    """Return the MLflow URI that the job of a run names; None where it names none.

    Args:
        storage: The run's directory.
        run: What it holds.

    Raises:
        UserError: The job cannot be read.
    """
    data = _content(storage, run, JOB_KEY)
    document = None if data is None else parse_yaml(data.decode(errors="replace"), source=f"{storage.url}/{JOB_KEY}")
    tracking = document.get("tracking") if isinstance(document, dict) else None
    uri = tracking.get("uri") if isinstance(tracking, dict) else None
    return uri if isinstance(uri, str) else None


def _released_version(storage: Storage, run: StoredRun) -> str | None:
    """Return the version that the command which trained a run registered, as its own record says; None for none.

    Raises:
        UserError: The record is damaged.
    """
    if (data := _content(storage, run, RELEASE_KEY)) is None:
        return None
    try:
        model = json.loads(data).get("model")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{storage.url}/{RELEASE_KEY}: not the record of a release ({one_line(error)})") from None
    return model if isinstance(model, str) else None


def _content(storage: Storage, run: StoredRun, key: str) -> bytes | None:
    """Return an object of a run; None where there is none.

    Raises:
        UserError: It is larger than any that yolofleet writes.
    """
    is_there = any(entry.key == key for entry in run.objects)
    return storage.get_at_most(key, MOST_BYTES) if is_there else None
