"""Registered versions as sources of weights."""

from __future__ import annotations

from pathlib import Path


def located(models_uri: str, tracking_uri: str | None) -> tuple[Path, str]:
    """Return the folder of a registered version, and which version the name stands for."""
    from yolofleet.registry.resolve import detector_folder
    from yolofleet.registry.versions import find_version
    from yolofleet.tracking.mlflow_store import find_tracking_uri

    return detector_folder(models_uri, tracking_uri), find_version(find_tracking_uri(tracking_uri), models_uri).uri
