"""Putting a detector into the Model Registry: built whole, uploaded, and only then given a version and an alias."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from yolofleet.registry.alias_history import reigns
from yolofleet.registry.evaluation_record import Judged, confirmed
from yolofleet.registry.package import collect_content, write_version
from yolofleet.registry.proof import PROOF_NAME, Background, file_sha256
from yolofleet.registry.release import run_background
from yolofleet.registry.versions import (
    CANDIDATE,
    DIGEST_TAG,
    PROOF_TAG,
    ModelTags,
    RegistryError,
    Version,
    check_alias,
    check_name,
    fact_tags,
    find_version,
    list_versions,
    set_alias,
)
from yolofleet.tracking.mirror import sync_now
from yolofleet.tracking.mlflow_store import experiment_id, mlflow_errors, open_client
from yolofleet.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOGGED_MODEL_NAME = "detector"
MODEL_TYPE = "object-detector"
DEFAULT_EXPERIMENT = "yolofleet"
FIGURE_FACT = "figures.AP"
"""A version has this fact if its detector was judged."""


def register_detector(
    folder: Path,
    name: str,
    tracking_uri: str,
    *,
    run_id: str | None = None,
    experiment: str = DEFAULT_EXPERIMENT,
    evidence: Mapping[str, Any],
    judged: Judged | None = None,
    manifests: Mapping[str, bytes] | None = None,
    report: bytes | None = None,
    alias: str = CANDIDATE,
) -> Version:
    """Register a detector package as a version of ``name`` and point ``alias`` to it.

    The same detector with the same inference code is registered once for each run: asked again, after a crash say,
    this returns the version that is there. Only where that was never judged, a judgement makes another version.

    Args:
        folder: The detector package, in its deployed form as a rule.
        name: The registered model, made if need be.
        tracking_uri: The MLflow server or database.
        run_id: MLflow's id of the run that made it.
        experiment: The experiment that keeps the files.
        evidence: What is known of the detector (plain JSON values): figures, data digests, job. It is kept whole in
            ``evidence.json``, and its leaves, those of ``job`` apart, as tags of the version.
        judged: What it is worth, with its detections.
        manifests: The manifests of its data, by ``train`` and ``val``.
        report: The page of its evaluation report.
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
        tags, aliases = ModelTags(tracking_uri, name).read()
        if reigns(tags, aliases, alias):
            raise RegistryError(
                f"@{alias} of '{name}' is moved by promotions, which its history tells: register with another alias, "
                "then promote the version"
            )
        version = _existing(tracking_uri, name, content.digest, run_id, must_be_judged=judged is not None)
        if version is None:
            judged = confirmed(judged) if judged is not None else None
            background = Background(judged=judged, manifests=manifests or {}, report=report)
            write = partial(write_version, content, evidence=evidence, background=background, run_id=run_id)
            shown = {key: value for key, value in evidence.items() if key != "job"}
            version = _create(client, experiment, name, run_id, {**fact_tags(shown), DIGEST_TAG: content.digest}, write)
    set_alias(tracking_uri, version, alias)
    return find_version(tracking_uri, version.uri)


def register_run(
    run: RunDirectory,
    name: str,
    tracking_uri: str,
    *,
    experiment: str = DEFAULT_EXPERIMENT,
    alias: str = CANDIDATE,
) -> Version:
    """Register the model of a run directory, with the run's facts as evidence, under the run's MLflow run.

    The run is mirrored to MLflow first if it is not there yet.

    Raises:
        UserError: The run has no model yet, or MLflow does not answer.
    """
    background = run_background(run)
    with TemporaryDirectory(prefix="yolofleet-package-") as folder:
        package = run.fetch_model(Path(folder))
        with mlflow_errors(tracking_uri):
            run_id = sync_now(run, tracking_uri, experiment)
        return register_detector(
            package,
            name,
            tracking_uri,
            run_id=run_id,
            experiment=experiment,
            evidence=background.evidence,
            judged=background.judged,
            manifests=background.manifests,
            report=background.report,
            alias=alias,
        )


def _make_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _existing(tracking_uri: str, name: str, digest: str, run_id: str | None, *, must_be_judged: bool) -> Version | None:
    same = [v for v in list_versions(tracking_uri, name) if (v.digest, v.run_id) == (digest, run_id)]
    return next((version for version in same if FIGURE_FACT in version.facts or not must_be_judged), None)


def _create(
    client: MlflowClient,
    experiment: str,
    name: str,
    run_id: str | None,
    tags: dict[str, str],
    write: Callable[..., Path],
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
            client.log_model_artifacts(logged.model_id, target)
        ready = True
    finally:
        client.finalize_logged_model(logged.model_id, "READY" if ready else "FAILED")
    # A server knows its models by id. A database store looks an id up wherever MLflow's global setting points, which is
    # not for us to change, so it gets the place itself.
    on_server = urlsplit(client.tracking_uri).scheme in ("http", "https", "databricks")
    created = client.create_model_version(
        name,
        source=f"models:/{logged.model_id}" if on_server else logged.artifact_location,
        run_id=run_id,
        tags={**tags, PROOF_TAG: proof_sha256},
        model_id=logged.model_id if on_server else None,
    )
    return Version(name=name, number=int(created.version), digest=tags[DIGEST_TAG], run_id=run_id)
