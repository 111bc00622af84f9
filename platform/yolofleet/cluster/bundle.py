"""What a job takes with it to a cluster: its spec, this package, and the versions that it was checked with.

Never data, and never a secret: data and run directory are named by where they lie, and the nodes have credentials of
their own in their environment.

What is installed where a job is sent from, and whether a cluster has the same.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

import yolofleet
from yolofleet.core.errors import UserError
from yolofleet.core.redaction import holds_password
from yolofleet.specs.document import parse_yaml
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import SearchSpec, load_search

PINNED = (
    "ray",
    "torch",
    "mlflow",
    "deepspeed",
    "webdataset",
    "boto3",
    "pycocotools",
    "numpy",
    "pydantic",
    "safetensors",
    "opencv-python-headless",
    "simplejpeg",
    "optuna",
)
"""Packages whose version decides what a job computes, or whether it runs at all."""


def installed_versions() -> dict[str, str]:
    """Return the version of Python (without the patch) and of each pinned package that is installed here."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PINNED:
        try:
            found[name] = metadata.version(name).partition("+")[0]  # a CPU and a CUDA build are the same version
        except metadata.PackageNotFoundError:
            continue
    return found


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return a line for each package that is wanted and is not there, or is there in another version."""
    return [
        f"{name}: {version} where the job was sent from, {found.get(name, 'not installed')} here"
        for name, version in wanted.items()
        if found.get(name) != version
    ]


SPEC_NAME = "spec.yaml"
MODEL_NAME = "model.yaml"
VERSIONS_NAME = "versions.json"
PACKAGE_SUFFIXES = (".py", ".yaml", ".json", ".typed")

Kind = Literal["train", "tune", "doctor"]


@dataclass(frozen=True)
class Bundle:
    """A job or a search, ready to be sent.

    Attributes:
        kind: The command that runs it.
        name: Name of the run or search.
        document: The spec, overrides applied, local paths absolute.
        model_table: The model's own table, where the spec names a file.
    """

    kind: Kind
    name: str
    document: dict[str, Any]
    model_table: str | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of the spec and the model's table: two bundles of the same digest ask for the same."""
        text = json.dumps([self.kind, self.document, self.model_table], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write it into an empty folder, the package's own source with it."""
        (folder / SPEC_NAME).write_text(yaml.safe_dump(self.document, sort_keys=False))
        if self.model_table is not None:
            (folder / MODEL_NAME).write_text(self.model_table)
        (folder / VERSIONS_NAME).write_text(json.dumps(installed_versions(), indent=1))
        source = Path(yolofleet.__file__).parent
        for file in sorted(source.rglob("*")):
            if file.is_file() and file.suffix in PACKAGE_SUFFIXES:
                target = folder / "yolofleet" / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def read_bundle(path: Path, overrides: list[str]) -> Bundle:
    """Read a job spec, or a search space, and make it fit to be sent.

    Raises:
        UserError: It is no valid spec, or names something that stays behind.
    """
    try:
        document = parse_yaml(path.read_text(), source=str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if isinstance(document, dict) and "parameters" in document:
        return _search_bundle(load_search(path, overrides), path)
    return _job_bundle(JobSpec.load(path, overrides), path)


def _job_bundle(job: JobSpec, path: Path) -> Bundle:
    job = job.with_absolute_paths()
    document, table = _without_local_files(job.document(), path)
    _check_no_secret(document, path)
    return Bundle("train", job.name, document, table)


def _search_bundle(space: SearchSpec, path: Path) -> Bundle:
    document = space.document()
    job = JobSpec.parse(document["job"], source=f"{path}: job").with_absolute_paths().document()
    document["job"], table = _without_local_files(job, path)
    _check_no_secret(document, path)
    return Bundle("tune", space.name, document, table)


def _check_no_secret(value: Any, path: Path, key: str = "") -> None:
    """Refuse URLs with a password in them: the spec is kept in the run directory and shown by the cluster."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_no_secret(item, path, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            _check_no_secret(item, path, key)
    elif isinstance(value, str) and holds_password(value):
        raise UserError(
            f"{path}: {key}: holds a password; leave it out and give it to the nodes in their environment "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_SECRET_ACCESS_KEY)"
        )


def _without_local_files(job: dict[str, Any], path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the job with the model's table as a file beside the spec, and that table."""
    weights = job.get("initial_weights")
    stays_behind = isinstance(weights, str) and "://" not in weights and Path(weights).is_file()
    if stays_behind and not str(weights).startswith("models:/"):
        raise UserError(
            f"{path}: initial_weights {weights}: a file of this machine is not sent with the job; put it where the "
            "cluster reads it (s3://...), or register it and name models:/NAME@ALIAS"
        )
    table = (job.get("model") or {}).get("spec")
    if table is None:
        return job, None
    try:
        text = Path(table).read_text()
    except OSError as error:
        raise UserError(f"{path}: model.spec {table}: cannot be read: {error.strerror}") from error
    return job | {"model": job["model"] | {"spec": MODEL_NAME}}, text
