"""The bundle of a job that is sent to a cluster: its spec, this package's source, and the versions of the sender.

The spec is that of a run or a search, or the words of a command that does other work there.

It never holds data or a secret: the spec names where data and run directory lie, and the nodes have credentials of
their own in their environment.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yolofleet
from yolofleet.core.errors import UserError
from yolofleet.core.redaction import redact
from yolofleet.models.zoo import load_table
from yolofleet.search.space import Space
from yolofleet.specs.job import JobSpec
from yolofleet.specs.job_paths import flatten
from yolofleet.specs.search import SearchSpec, load_search
from yolofleet.specs.yaml_document import AnyFile, read_yaml, write_yaml

SPEC_NAME = "spec.yaml"
MODEL_NAME = "model.yaml"
VERSIONS_NAME = "versions.json"
PACKAGE_SUFFIXES = (".py", ".pyi", ".yaml", ".json", ".csv", ".txt", ".typed", ".html", ".css", ".js")
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

Kind = Literal["train", "tune", "doctor", "command"]
COMMANDS = (("evaluate",), ("predict",), ("export",), ("data", "shard"), ("registry", "verify"))
"""Commands that can be sent as jobs; what they write lies in a storage afterwards."""


def installed_versions() -> dict[str, str]:
    """Return the version of Python (without the patch) and of each pinned package that is installed here."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PINNED:
        try:
            versions[name] = metadata.version(name).partition("+")[0]  # a CPU and a CUDA build are the same version
        except metadata.PackageNotFoundError:
            continue
    return versions


def differences(expected: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """Return a line for each expected package that is not installed, or in another version."""
    return [
        f"{name}: {version} where the job was sent from, {installed.get(name, 'not installed')} here"
        for name, version in expected.items()
        if installed.get(name) != version
    ]


@dataclass(frozen=True)
class Bundle:
    """A job or a search, ready to be sent."""

    kind: Kind
    """The command that runs it."""
    name: str
    """Name of the run or search."""
    document: dict[str, Any]
    """The spec, overrides applied, local paths absolute; of a command its words and what it needs."""
    model_table: str | None = None
    """The model's own table, where the spec names a file."""

    @property
    def directory(self) -> str | None:
        """Where its run or search keeps its state; None for other work."""
        job = self.document.get("job", {}) | self.document.get("set", {}) if self.kind == "tune" else self.document
        storage = job.get("storage") if self.kind in ("train", "tune") else None
        return None if storage is None else f"{str(storage).rstrip('/')}/{self.name}"

    @property
    def resources(self) -> dict[str, float]:
        """What its own process needs of a node, for Ray; a run's process only looks after its workers."""
        return {key: float(self.document.get(key, 0)) for key in ("cpus", "gpus")} if self.kind == "command" else {}

    @property
    def digest(self) -> str:
        """The SHA-256 of the spec and the model's table: bundles of the same digest ask for the same."""
        text = json.dumps([self.kind, self.document, self.model_table], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the bundle into an empty folder, with the source of this package."""
        (folder / SPEC_NAME).write_text(write_yaml(self.document))
        if self.model_table is not None:
            (folder / MODEL_NAME).write_text(self.model_table)
        (folder / VERSIONS_NAME).write_text(json.dumps(installed_versions(), indent=1))
        source = Path(yolofleet.__file__).parent
        for file in sorted(source.rglob("*")):
            if file.is_file() and file.suffix in PACKAGE_SUFFIXES:
                target = folder / "yolofleet" / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def read_bundle(path: AnyFile, overrides: list[str]) -> Bundle:
    """Read a job spec, or a search space, and make it fit to be sent: a space's ``set`` becomes part of its base job.

    Raises:
        UserError: It is not a valid spec, or names a file that only this machine has.
    """
    given = read_yaml(path)
    if isinstance(given, dict) and "parameters" in given:
        space = load_search(path, overrides)
        check_choices(space, str(path))
        job = Space(space, source=str(path)).base_job.with_absolute_paths()
        fields, table = _without_local_files(job.document(), path)
        base = fields | {"name": space.job.get("name", space.name)}
        return Bundle("tune", space.name, space.document() | {"job": base, "set": {}}, table)
    job = JobSpec.load(path, overrides).with_absolute_paths()
    document, table = _without_local_files(job.document(), path)
    return Bundle("train", job.name, document, table)


def command_bundle(words: list[str], *, cpus: float, gpus: float, name: str | None = None) -> Bundle:
    """Return the bundle of a command.

    Args:
        words: The command and its arguments; paths among them are those of the cluster's nodes.
        cpus: CPUs that it needs.
        gpus: GPUs that it needs.
        name: Name of the job; by default the command's, with a digest of its words.

    Raises:
        UserError: It is no command that can be sent, or a word holds a secret.
    """
    command = sent_command(words)
    if command is None:
        known = ", ".join(" ".join(entry) for entry in COMMANDS)
        raise UserError(f"{' '.join(words[:2])}: is not a command that can be sent; those are {known}")
    for word in words:
        if redact(word) != word:
            raise UserError(
                f"{redact(word)}: holds a secret, and everybody who uses the cluster can read a job's command; leave "
                "it out, and give it in the environment of the cluster's nodes (MLFLOW_TRACKING_PASSWORD, ...)"
            )
    document = {"arguments": words, "cpus": cpus, "gpus": gpus}
    made = Bundle("command", name or "-".join(command), document)
    return made if name else replace(made, name=f"{made.name}-{made.digest[:8]}")


def sent_command(words: list[str]) -> tuple[str, ...] | None:
    """Return which of `COMMANDS` the words begin with, None for none of them."""
    return next((command for command in COMMANDS if tuple(words[: len(command)]) == command), None)


def _without_local_files(job: dict[str, Any], path: AnyFile) -> tuple[dict[str, Any], str | None]:
    """Return the job with its model named as a file beside the spec, and the content of that file."""
    weights = job.get("initial_weights")
    if isinstance(weights, str) and "://" not in weights and Path(weights).is_file():
        raise UserError(
            f"{path}: initial_weights {weights}: a file of this machine is not sent with the job; put it where the "
            "cluster reads it (s3://...), or register it and name NAME@ALIAS"
        )
    table = (job.get("model") or {}).get("spec")
    if table is None:
        return job, None
    return job | {"model": job["model"] | {"spec": MODEL_NAME}}, read_model_table(table, f"{path}: model.spec")


def check_choices(spec: SearchSpec, source: str) -> None:
    """Raise `UserError` where a search chooses among files of this machine, which stay behind."""
    for name, parameter in spec.parameters.items():
        choices = parameter.choice
        fields = [flatten(entry) for entry in choices.values()] if isinstance(choices, dict) else [{name: choices}]
        if any("model.spec" in entry for entry in fields):
            raise UserError(
                f"{source}: parameters.{name} chooses among model specs of this machine, which the cluster does not "
                "see; vary model.name, model.depth and the widths instead"
            )


def read_model_table(path: str, source: str) -> str:
    """Return the text of a model's own table, once its reader has taken it: no other file leaves this machine.

    Of a table that is derived from another one, that is the resulting table.

    Args:
        path: The file.
        source: What names it, for messages.

    Raises:
        UserError: It is no table, or holds a secret.
    """
    try:
        table, given = load_table(path), read_yaml(Path(path))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    text = Path(path).read_text(encoding="utf-8-sig")
    is_derived = isinstance(given, dict) and "base" in given  # perhaps from a file that stays behind
    sent = write_yaml(table.document()) if is_derived else text
    if redact(text) != text or redact(sent) != sent:
        raise UserError(f"{source}: {path}: holds a URL with a secret, and is sent with the job; leave it out")
    return sent
