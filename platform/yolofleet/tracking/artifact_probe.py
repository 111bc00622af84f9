"""Whether the store of MLflow's files works: one small file is stored, fetched and removed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from yolofleet.core.text import one_line


def is_made_by_first_run(location: str) -> bool:
    """Return whether an artifact location is a folder that does not exist before the first run."""
    parts = urlsplit(location)
    return parts.scheme in ("", "file") and not Path(parts.path).is_dir()


def artifact_problem(tracking_uri: str, location: str, name: str, text: str) -> str | None:
    """Store a file, fetch it and remove it; return why that fails, None if it does not.

    Args:
        tracking_uri: The MLflow that the location belongs to; it may be the server that keeps the files.
        location: An experiment's artifact location.
        name: Name of the file, used by nothing else there.
        text: Content of the file.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory(prefix="yolofleet-artifact-") as folder:
        file, fetched = Path(folder, name), Path(folder, "fetched")
        file.write_text(text)
        fetched.mkdir()
        try:
            store = get_artifact_repository(location, tracking_uri=tracking_uri)
            store.log_artifact(str(file))
            try:
                seen = Path(store.download_artifacts(name, dst_path=str(fetched))).read_text()
            finally:
                store.delete_artifacts(name)
        except Exception as error:  # every kind of store raises what its own library does
            return one_line(error)
    return None if seen == text else "the fetched file differs from the stored one"
