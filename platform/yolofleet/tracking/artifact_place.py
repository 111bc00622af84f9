"""Where MLflow keeps the files of runs: whether it can keep one, and give it back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from yolofleet.redaction import without_passwords


def is_yet_to_be_made(place: str) -> bool:
    """Return whether a place is a folder that the first run makes."""
    parts = urlsplit(place)
    return parts.scheme in ("", "file") and not Path(parts.path).is_dir()


def artifact_problem(tracking_uri: str, place: str, name: str, text: str) -> str | None:
    """Keep a file, fetch it and remove it; return why that cannot be done, None if it can.

    Args:
        tracking_uri: Of the MLflow that the place belongs to; it may be the server that keeps the files.
        place: An experiment's artifact location.
        name: Of the file; nothing else there may have it.
        text: What it holds.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory(prefix="yolofleet-artifact-") as folder:
        file, fetched = Path(folder, name), Path(folder, "fetched")
        file.write_text(text)
        fetched.mkdir()
        try:
            store = get_artifact_repository(place, tracking_uri=tracking_uri)
            store.log_artifact(str(file))
            try:
                seen = Path(store.download_artifacts(name, dst_path=str(fetched))).read_text()
            finally:
                store.delete_artifacts(name)
        except Exception as error:  # every kind of store raises what its own library does
            return without_passwords(" ".join(str(error).split()))[:300] or type(error).__name__
    return None if seen == text else "what is fetched is not what was kept"
