"""The experiment of a run in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from yolofleet.core.redaction import redact
from yolofleet.tracking.mlflow_store import TrackingError, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Says that it is about models, not about prompts and traces."""


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of the experiment ``name``; creates a missing one.

    Artifacts of a sqlite store lie beside its database: MLflow's default is a folder wherever the process was started.

    Raises:
        TrackingError: The experiment was deleted on the server.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(client.tracking_uri)
        location = None if database is None else (database.parent / "artifacts" / quote(name, safe=" ")).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was first
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment '{name}' at {redact(client.tracking_uri)} was deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}`, or set another tracking.experiment"
        )
    return str(found.experiment_id)
