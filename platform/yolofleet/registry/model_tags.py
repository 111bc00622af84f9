"""Tags and aliases of a registered model, as MLflow keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from yolofleet.registry.versions import RegistryError
from yolofleet.tracking.mlflow_store import mlflow_errors, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient


class VersionGoneError(RegistryError):
    """A version was deleted in MLflow."""


class ModelTags:
    """Tags and aliases of a registered model in MLflow.

    Args:
        tracking_uri: The MLflow server or database.
        name: The registered model.
    """

    def __init__(self, tracking_uri: str, name: str) -> None:
        self._uri = tracking_uri
        self._name = name
        self._client: MlflowClient = open_client(tracking_uri)

    def read(self) -> tuple[Mapping[str, str], Mapping[str, int]]:
        """Return all tags and all aliases."""
        with mlflow_errors(self._uri):
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
