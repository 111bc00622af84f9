"""Putting a detector into the Model Registry: built whole, uploaded, and only then given a version and an alias."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from yolofleet.registry.package import VersionContent, collect_content, write_version
from yolofleet.registry.versions import (
    CANDIDATE,
    DIGEST_TAG,
    Version,
    check_name,
    fact_tags,
    find_version,
    list_versions,
    set_alias,
)
from yolofleet.specs.document import parse_yaml
from yolofleet.tracking.mirror import sync_now
from yolofleet.tracking.mlflow_store import experiment_id, mlflow_errors, open_client
from yolofleet.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOGGED_MODEL_NAME = "detector"
MODEL_TYPE = "object-detector"
DEFAULT_EXPERIMENT = "yolofleet"


def register_detector(
    folder: Path,
    name: str,
    tracking_uri: str,
    *,
    run_id: str | None = None,
    experiment: str = DEFAULT_EXPERIMENT,
    evidence: Mapping[str, Any],
    alias: str = CANDIDATE,
) -> Version:
    """Register a detector package as a version of ``name`` and point ``alias`` to it.

    The same detector with the same inference code is registered once for each run: asked again, after a crash say,
    this returns the version that is there.

    Args:
        folder: The detector package, in its deployed form as a rule.
        name: The registered model, made if need be.
        tracking_uri: The MLflow server or database.
        run_id: MLflow's id of the run that made it.
        experiment: The experiment that keeps the files.
        evidence: What is known of the detector (plain JSON values): figures, data digests, job. It is kept whole in
            ``evidence.json``, and its leaves, those of ``job`` apart, as tags of the version.
        alias: Points to the version afterwards.

    Raises:
        UserError: The folder is no good detector package, the name is not possible, or MLflow does not answer.
    """
    check_name(name)
    content = collect_content(folder)
    client = open_client(tracking_uri)
    with mlflow_errors(tracking_uri):
        version = _existing(client, tracking_uri, name, content.digest, run_id)
        if version is None:
            version = _create(client, experiment, content, name, run_id, evidence)
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
    job_text = run.job_text() or ""
    evidence = {
        **run.facts(),
        "run_directory": run.url,
        "job_sha256": hashlib.sha256(job_text.encode()).hexdigest(),
        "job": parse_yaml(job_text, source=f"{run.url}/job.yaml"),
    }
    with TemporaryDirectory(prefix="yolofleet-package-") as folder:
        package = run.fetch_model(Path(folder))
        with mlflow_errors(tracking_uri):
            run_id = sync_now(run, tracking_uri, experiment)
        return register_detector(
            package, name, tracking_uri, run_id=run_id, experiment=experiment, evidence=evidence, alias=alias
        )


def _existing(client: MlflowClient, tracking_uri: str, name: str, digest: str, run_id: str | None) -> Version | None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = list_versions(tracking_uri, name)
    return next((version for version in known if (version.digest, version.run_id) == (digest, run_id)), None)


def _create(
    client: MlflowClient,
    experiment: str,
    content: VersionContent,
    name: str,
    run_id: str | None,
    evidence: Mapping[str, Any],
) -> Version:
    tags = {**fact_tags({key: value for key, value in evidence.items() if key != "job"}), DIGEST_TAG: content.digest}
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
            write_version(content, Path(target), evidence=evidence, model_id=logged.model_id, run_id=run_id)
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
        tags=tags,
        model_id=logged.model_id if on_server else None,
    )
    return Version(name=name, number=int(created.version), digest=content.digest, run_id=run_id)
