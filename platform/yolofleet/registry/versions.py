"""Registered models, their versions, tags and aliases, as MLflow stores them.

An sqlite store is read without MLflow where that is enough (`yolofleet.registry.sqlite_models`). What a server answers
may be wrong, or endless: both end in one error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from yolofleet.core.errors import UserError
from yolofleet.core.redaction import redact, redact_error
from yolofleet.core.text import one_line
from yolofleet.tracking.mirrored_run import flat_params
from yolofleet.tracking.mlflow_store import mlflow_errors, open_client, patiently, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MOST_PAGES = 1000
"""Of one search, each with 1,000 entries."""
CANDIDATE = "candidate"
TAG_PREFIX = "yolofleet."
DIGEST_TAG = "yolofleet.digest"
PROOF_TAG = "yolofleet.proof_sha256"
DIGEST_TAGS = (DIGEST_TAG, PROOF_TAG)
SEARCHED_DIGESTS = ("data.train", "data.val", "job_sha256")
"""Facts that say where a version comes from."""
LONGEST_TAG = 5000


class RegistryError(UserError):
    """A registered model, version or alias does not exist or cannot have that name."""


class VersionGoneError(RegistryError):
    """A version was deleted in MLflow."""


@dataclass(frozen=True)
class Version:
    """One registered version."""

    name: str
    """Name of the registered model."""
    number: int
    aliases: tuple[str, ...] = ()
    """The aliases that point to it."""
    digest: str | None = None
    """sha256 of the detector package and its inference code; None if it was not registered by yolofleet."""
    proof_sha256: str | None = None
    """sha256 of its ``proof.json``, kept in MLflow's database, apart from the files."""
    run_id: str | None = None
    """MLflow's id of the run that made it, where there is one."""
    created_milliseconds: int = 0
    """When it was registered (Unix time)."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Figures, data digests and whatever else was recorded with it."""

    @property
    def uri(self) -> str:
        """The reference that `yolofleet predict`, `yolofleet evaluate` and MLflow take."""
        return f"models:/{self.name}/{self.number}"

    def document(self) -> dict[str, Any]:
        """Return the version as plain JSON values."""
        document = asdict(self)
        return {"name": document.pop("name"), "version": document.pop("number"), "uri": self.uri, **document}


def check_name(name: str) -> None:
    """Raise `RegistryError` for a name that a registered model cannot have."""
    if not re.fullmatch(r"[^/:'\"`\x00-\x1f]{1,200}", name) or name.strip() != name:
        raise RegistryError(f"{name!r} cannot name a registered model: 1 to 200 characters, none of / : ' \" `")


def check_alias(alias: str) -> None:
    """Raise `RegistryError` for a name that no alias can have."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,99}", alias) or re.fullmatch(r"[vV]\d+|latest", alias):
        raise RegistryError(f"{alias!r} cannot be an alias: letters, digits, _ and -; not 'latest', not 'v1'")


def list_versions(tracking_uri: str, name: str | None = None) -> list[Version]:
    """Return the registered versions, by name and then the newest first.

    Raises:
        RegistryError: There is no such registered model.
        TrackingError, TrackingFailureError: MLflow does not answer.
    """
    client = open_client(tracking_uri)
    with _readable_answers(tracking_uri):
        return patiently(tracking_uri, lambda: list(_list_versions(client, name)))


def browse_versions(tracking_uri: str, name: str | None = None, *, may_load_mlflow: bool = True) -> list[Version]:
    """Return what `list_versions` does, of an sqlite store without the seconds that MLflow itself takes to load.

    Args:
        tracking_uri: The MLflow server or database.
        name: Name of a registered model; None for all.
        may_load_mlflow: Whether MLflow may open an sqlite store that can be read only by it, and change its tables.

    Raises:
        RegistryError: There is no such registered model, or the database is not MLflow's.
        TrackingError, TrackingFailureError: MLflow does not answer.
    """
    from yolofleet.registry.sqlite_models import read_models

    if (database := sqlite_path(tracking_uri)) is not None:
        if (found := read_models(database)) is not None:
            return list(_join(*found, name))
        if not may_load_mlflow:
            raise RegistryError(
                f"{database}: only MLflow itself can read it, and may change it; if it is yours, name it with "
                f"--tracking-uri {tracking_uri}"
            )
    return list_versions(tracking_uri, name)


@contextmanager
def _readable_answers(tracking_uri: str) -> Iterator[None]:
    """Turn what an answer that no registry gives raises inside the block into `RegistryError`."""
    from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]

    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, ParseError, RecursionError, TypeError, ValueError) as error:
        raise RegistryError(
            f"MLflow at {redact(tracking_uri)} answers what no registry does: {one_line(error)}; is it the right one?"
        ) from redact_error(error)


def _list_versions(client: MlflowClient, name: str | None) -> Iterator[Version]:
    """Yield the versions with two requests, however many models there are (up to 1,000)."""
    models = list(_all_pages(lambda token: client.search_registered_models(max_results=1000, page_token=token)))
    only = None if name is None else f"name='{name}'"
    found = _all_pages(lambda token: client.search_model_versions(only, max_results=1000, page_token=token))
    yield from _join(models, found, name)


def _join(models: list[Any], entries: Iterable[Any], name: str | None) -> Iterator[Version]:
    """Yield the versions of one registered model, or of all, with their aliases."""
    names = sorted(model.name for model in models)
    if name is not None and name not in names:
        raise RegistryError(f"there is no registered model '{name}'; there is: {', '.join(names) or 'none yet'}")
    aliases: dict[tuple[str, str], list[str]] = {}
    for model in models:
        for alias, number in model.aliases.items():
            aliases.setdefault((model.name, str(number)), []).append(alias)
    for entry in sorted(entries, key=lambda entry: (entry.name, -int(entry.version))):
        if entry.name in names and name in (None, entry.name):  # the others are prompts
            yield _version(entry, aliases.get((entry.name, str(entry.version)), []))


def find_version(tracking_uri: str, reference: str) -> Version:
    """Return the version that ``NAME@ALIAS``, ``NAME/VERSION`` or ``NAME`` (the newest) means; ``models:/`` may lead.

    Raises:
        RegistryError: There is no such model, version or alias.
        TrackingError: MLflow does not answer.
    """
    name, alias, number = parse_reference(reference)
    versions = list_versions(tracking_uri, name)
    for version in versions:
        if (alias in version.aliases) if alias else number in (None, version.number):
            return version
    aliases = sorted({alias for version in versions for alias in version.aliases})
    numbers = [version.number for version in versions]
    raise RegistryError(f"{reference}: no such version; model '{name}' has versions {numbers} and aliases {aliases}")


def parse_reference(reference: str) -> tuple[str, str | None, int | None]:
    """Return name, alias and version number of a reference; alias or number or both are None.

    Raises:
        RegistryError: The text is not a reference.
    """
    match = re.fullmatch(r"(?:models:/+)?([^/:@]+)(?:@([^/:@]+)|/(\d+)|/latest)?", reference)
    if match is None:
        raise RegistryError(f"{reference!r} is not a model reference; write models:/NAME@ALIAS or models:/NAME/VERSION")
    return match[1], match[2], int(match[3]) if match[3] else None


def fact_tags(evidence: Mapping[str, Any]) -> dict[str, str]:
    """Return evidence as tags by dotted path: ``{"figures": {"AP": 0.5}}`` -> ``{"yolofleet.figures.AP": "0.5"}``."""
    return {TAG_PREFIX + key: value for key, value in flat_params(evidence, longest=LONGEST_TAG).items()}


def is_tagged(fact: str, value: str) -> bool:
    """Return whether a fact becomes a tag: all but digests that nothing searches, which are in ``evidence.json``."""
    return fact in SEARCHED_DIGESTS or re.fullmatch("[0-9a-f]{64}", value) is None


def _all_pages(fetch: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield the entries of all pages of a search, given a function that returns the page of a token."""
    token = None
    for _ in range(MOST_PAGES):
        page = fetch(token)
        yield from page
        token = page.token
        if not token:
            return
    raise ValueError(f"more than {MOST_PAGES:,} pages")


def _version(entry: ModelVersion, aliases: list[str]) -> Version:
    ours = {key: value for key, value in entry.tags.items() if key.startswith(TAG_PREFIX) and key not in DIGEST_TAGS}
    facts = {key.removeprefix(TAG_PREFIX): value for key, value in ours.items()}
    return Version(
        name=entry.name,
        number=int(entry.version),
        aliases=tuple(sorted(aliases)),
        digest=_sha256(entry.tags.get(DIGEST_TAG)),
        proof_sha256=_sha256(entry.tags.get(PROOF_TAG)),
        run_id=entry.run_id or None,
        created_milliseconds=int(entry.creation_timestamp or 0),
        facts=dict(sorted(facts.items())),
    )


def _sha256(text: str | None) -> str | None:
    """Return a digest from a server; None for any other text, because it becomes part of a path."""
    return text if text is not None and re.fullmatch("[0-9a-f]{64}", text) else None


class ModelTags:
    """Tags and aliases of a registered model in MLflow: a `yolofleet.registry.promotion_lock.TagStore`."""

    def __init__(self, tracking_uri: str, name: str) -> None:
        self._uri = tracking_uri
        self._name = name
        self._client: MlflowClient = open_client(tracking_uri)

    def read(self) -> tuple[Mapping[str, str], Mapping[str, int]]:
        """Return all tags and all aliases."""
        with _readable_answers(self._uri), mlflow_errors(self._uri):
            model = self._client.get_registered_model(self._name)
            return dict(model.tags), {alias: int(number) for alias, number in model.aliases.items()}

    def set_tag(self, key: str, value: str) -> None:
        """Write a tag."""
        with mlflow_errors(self._uri):
            self._client.set_registered_model_tag(self._name, key, value)

    def delete_tag(self, key: str) -> None:
        """Remove a tag; nothing happens if it is gone."""
        with mlflow_errors(self._uri):
            self._client.delete_registered_model_tag(self._name, key)

    def set_alias(self, alias: str, version: int) -> None:
        """Point an alias to a version.

        Raises:
            VersionGoneError: There is no such version.
        """
        from mlflow.exceptions import MlflowException

        with mlflow_errors(self._uri):
            try:
                self._client.set_registered_model_alias(self._name, alias, str(version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise VersionGoneError(f"version {version} of '{self._name}' was deleted in MLflow") from error
