"""Registering a detector: all its files are uploaded before a version and an alias point to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from yolofleet.core.redaction import redact, redact_values
from yolofleet.core.text import plural
from yolofleet.registry.alias_history import alias_changes
from yolofleet.registry.evaluation_record import Evaluation, Evidence, confirm_figures
from yolofleet.registry.package import collect_content, write_version
from yolofleet.registry.proof import PROOF_NAME, Proof, file_sha256, read_proof
from yolofleet.registry.release import run_evidence
from yolofleet.registry.version_files import at_once
from yolofleet.registry.versions import (
    CANDIDATE,
    DIGEST_TAG,
    PROOF_TAG,
    TAG_PREFIX,
    ModelTags,
    RegistryError,
    Version,
    check_alias,
    check_name,
    fact_tags,
    find_version,
    is_tagged,
    list_versions,
)
from yolofleet.tracking.mirror import sync_now
from yolofleet.tracking.mlflow_store import experiment_id, mlflow_errors, open_client, patiently
from yolofleet.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOGGED_MODEL_NAME = "detector"
MODEL_TYPE = "object-detector"
DEFAULT_EXPERIMENT = "yolofleet"
MODEL_DESCRIPTION = (
    "A detector in versions. Each has a proof: `yolofleet registry verify NAME/VERSION` verifies it. `@candidate` is "
    "the newest one, `@champion` the promoted one; `yolofleet registry history NAME` shows why."
)
LONGEST_DESCRIPTION = 5000
FIGURE_FACT = "figures.AP"
"""A version has this fact if its detector was evaluated."""
PROTOCOL_FACT = "evaluation.protocol"
"""By which protocol; versions without this fact were evaluated on square inputs."""


def register_detector(
    folder: Path,
    name: str,
    tracking_uri: str,
    evidence: Evidence,
    *,
    run_id: str | None = None,
    experiment: str = DEFAULT_EXPERIMENT,
    alias: str = CANDIDATE,
) -> Version:
    """Register a detector package as a version of a model and point an alias to it.

    The same detector with the same inference code is registered once for each run: a second call, after a crash say,
    returns the existing version. Only if that one was never evaluated, or by another protocol, an evaluation makes
    another version.

    Args:
        folder: The detector package, in its deployed form as a rule.
        name: The registered model; it is created if it does not exist.
        tracking_uri: The MLflow server or database.
        evidence: What is known of the detector.
        run_id: MLflow's id of the run that made it.
        experiment: The experiment that keeps the files.
        alias: Points to the version afterwards.

    Raises:
        UserError: The folder is no good detector package, the name is not possible, MLflow does not answer, or the
            alias is moved by promotions.
    """
    check_name(name)
    check_alias(alias)
    content = collect_content(folder)
    client = open_client(tracking_uri)
    with mlflow_errors(tracking_uri):
        _make_model(client, name)
        store = ModelTags(tracking_uri, name)
        model_tags, aliases = store.read()
        if alias_changes(model_tags, aliases, alias):
            raise RegistryError(
                f"@{alias} of '{name}' is moved by promotions, as its history shows: register with another alias, "
                "then promote the version"
            )
        version = _existing(tracking_uri, name, content.digest, run_id, evidence.evaluation)
        if version is None:
            if evidence.evaluation is not None:
                evidence = replace(evidence, evaluation=confirm_figures(evidence.evaluation))
            write = partial(write_version, content, evidence=evidence, run_id=run_id)
            tags_of_facts = fact_tags({key: value for key, value in evidence.facts.items() if key != "job"})
            tagged = {k: v for k, v in tags_of_facts.items() if is_tagged(k.removeprefix(TAG_PREFIX), v)}
            tags = {**redact_values(tagged), DIGEST_TAG: content.digest}
            describe = partial(describe_version, evidence, f"{name}@{alias}", run_id)
            version = _create(tracking_uri, client, experiment, name, run_id, tags, write, describe)
    store.set_alias(alias, version.number)
    return find_version(tracking_uri, version.uri)


def register_run(
    run: RunDirectory, name: str, tracking_uri: str, *, experiment: str = DEFAULT_EXPERIMENT, alias: str = CANDIDATE
) -> Version:
    """Register the model of a run directory, with the run's facts as evidence, under the run's MLflow run.

    The run is mirrored to MLflow first if it is not there yet.

    Raises:
        UserError: The run has no model yet, or MLflow does not answer.
    """
    evidence = run_evidence(run)
    with TemporaryDirectory(prefix="yolofleet-package-") as folder:
        package = run.fetch_model(Path(folder))
        with mlflow_errors(tracking_uri):
            run_id = sync_now(run, tracking_uri, experiment)
        return register_detector(
            package, name, tracking_uri, evidence, run_id=run_id, experiment=experiment, alias=alias
        )


def describe_version(evidence: Evidence, reference: str, run_id: str | None, proof: Proof) -> str:
    """Return the description of a version, in Markdown: what it is and is worth, its proof, how to use it, an image.

    Args:
        evidence: What is known of it.
        reference: What a user calls it.
        run_id: MLflow's id of the run that made it.
        proof: What its files prove.
    """
    facts = evidence.facts
    job = facts.get("job") or {}
    model = job.get("model") or {}
    source = facts.get("data_url") or {}
    lines = [f"**{model.get('name') or model.get('spec') or facts.get('model') or 'detector'}**"]
    if (step := facts.get("released_step")) is not None:
        lines[0] += f", the averaged weights of step {step:,}"
    record = proof.evaluation
    if record is not None:
        shown = ", ".join(f"{key} {value:.4f}" for key, value in record.figures.items() if value is not None)
        on = f" of `{source['val']}`" if source.get("val") else ""
        lines.append(f"{shown} on {plural(record.num_images, 'image')}{on}")
        if (before := (record.unrounded_figures or {}).get("AP")) is not None:
            lines.append(f"weights in half precision; before they were rounded to it AP was {before:.4f}")
    if source.get("train"):
        lines.append(f"trained on `{source['train']}`")
    checked = ["the digests of all files", "the versions of all packages"]
    checked += ["every box behind the figures"] if record is not None else []
    checked += ["the manifests of its data"] if proof.data else []
    claims = ", ".join(checked)
    lines.append(f"proof: {plural(len(proof.files), 'file')}, written {proof.written}, with {claims}")
    lines.append(f"use: `yolofleet predict models:/{reference} IMAGE`")
    if run_id is not None:
        link = f"get-artifact?path=report/images/00.jpg&run_uuid={run_id}"
        lines.append(f"![ground truth, and what it found]({link})")
    return redact("\n\n".join(lines))[:LONGEST_DESCRIPTION]


def _make_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=MODEL_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _existing(
    tracking_uri: str, name: str, digest: str, run_id: str | None, evaluation: Evaluation | None
) -> Version | None:
    same = [v for v in list_versions(tracking_uri, name) if (v.digest, v.run_id) == (digest, run_id)]
    if evaluation is not None:
        protocol = evaluation.record.settings.protocol
        same = [v for v in same if FIGURE_FACT in v.facts and v.facts.get(PROTOCOL_FACT, "square") == protocol]
    return next(iter(same), None)


def _upload(tracking_uri: str, client: MlflowClient, model_id: str, folder: Path) -> None:
    """Upload all files of a folder, a few at a time, each again where its failure may pass by itself."""

    def upload(name: str) -> None:
        parent = name.rpartition("/")[0] or None
        patiently(tracking_uri, partial(client.log_model_artifact, model_id, str(folder / name), parent))

    at_once(upload, sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _create(
    tracking_uri: str,
    client: MlflowClient,
    experiment: str,
    name: str,
    run_id: str | None,
    tags: dict[str, str],
    write: Callable[..., Path],
    describe: Callable[[Proof], str],
) -> Version:
    """Write the files, upload them, and make the version once they are all there."""
    logged = client.create_logged_model(
        experiment_id(client, experiment),
        name=LOGGED_MODEL_NAME,
        source_run_id=run_id,
        model_type=MODEL_TYPE,
        tags=tags,
    )
    ready = False
    try:
        with TemporaryDirectory(prefix="yolofleet-register-") as target:
            write(Path(target), model_id=logged.model_id)
            proof_sha256 = file_sha256(Path(target, PROOF_NAME))
            description = describe(read_proof(Path(target)))
            _upload(tracking_uri, client, logged.model_id, Path(target))
        ready = True
    finally:
        client.finalize_logged_model(logged.model_id, "READY" if ready else "FAILED")
    # A server knows its models by id. A database store would look an id up wherever MLflow's global setting points,
    # which we must not change: so it gets the location of the files.
    on_server = urlsplit(client.tracking_uri).scheme in ("http", "https", "databricks")
    created = client.create_model_version(
        name,
        source=f"models:/{logged.model_id}" if on_server else logged.artifact_location,
        run_id=run_id,
        tags={**tags, PROOF_TAG: proof_sha256},
        model_id=logged.model_id if on_server else None,
        description=description,
    )
    return Version(name=name, number=int(created.version), digest=tags[DIGEST_TAG], run_id=run_id)
