"""The versions in an sqlite store, read without MLflow: its import and its check of the tables take seconds.

Nothing is written. Where the tables are not as expected (a newer or a much older MLflow, several workspaces), None is
the answer, and MLflow's own client has to be asked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

DELETED = "Deleted_Internal"
"""MLflow's stage of a version that was deleted."""
PROMPT_TAG = "mlflow.prompt.is_prompt"
PATIENCE_SECONDS = 5.0
"""How long a writer is waited for."""


def read_models(database: Path) -> tuple[list[Any], list[Any]] | None:
    """Return the registered models and all their versions, with MLflow's names for what they have.

    Args:
        database: The file of an sqlite store.

    Returns:
        Models (name, aliases) and versions (name, version, tags, run_id, creation_timestamp); None where it cannot be
        read in this way.
    """
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=PATIENCE_SECONDS)) as store:
            return _models(store), list(_versions(store))
    except (sqlite3.Error, ValueError, TypeError):
        return None


def _models(store: sqlite3.Connection) -> list[Any]:
    prompts = "SELECT name FROM registered_model_tags WHERE key = ? AND lower(value) = 'true'"
    names = store.execute(f"SELECT name FROM registered_models WHERE name NOT IN ({prompts})", (PROMPT_TAG,)).fetchall()
    models = {name: SimpleNamespace(name=name, aliases={}) for (name,) in names}
    if len(models) < len(names):
        raise ValueError("a name is there in several workspaces")
    for name, alias, version in store.execute("SELECT name, alias, version FROM registered_model_aliases"):
        if name in models:
            models[name].aliases[alias] = version
    return list(models.values())


def _versions(store: sqlite3.Connection) -> Iterator[Any]:
    tags: dict[tuple[str, int], dict[str, str]] = {}
    for name, version, key, value in store.execute("SELECT name, version, key, value FROM model_version_tags"):
        tags.setdefault((name, version), {})[key] = value
    query = "SELECT name, version, run_id, creation_time FROM model_versions WHERE current_stage IS NOT ?"
    for name, version, run_id, created in store.execute(query, (DELETED,)):
        yield SimpleNamespace(
            name=name,
            version=int(version),
            tags=tags.get((name, version), {}),
            run_id=run_id,
            creation_timestamp=int(created or 0),
        )
