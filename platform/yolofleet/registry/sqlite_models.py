"""The registered models of an sqlite store, read without MLflow, whose import and check of the tables take seconds.

Nothing is written. Where the tables are not as expected (a newer or a much older MLflow, several workspaces) the caller
asks MLflow's own client. The file may be a stranger's: only plain tables are read, and within limits, for a view or a
computed column gives rows and text without an end.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.local_files import open_regular
from yolofleet.core.text import short

DELETED = "Deleted_Internal"
"""MLflow's stage of a version that was deleted."""
TABLES = (
    "registered_models", "registered_model_tags", "registered_model_aliases", "model_versions", "model_version_tags",
)  # fmt: skip
"""All that is read."""
PROMPT_TAG = "mlflow.prompt.is_prompt"
WRITER_PATIENCE_SECONDS = 5.0
"""How long a writer is waited for."""
MOST_SECONDS = 30.0
MOST_ROWS = 1_000_000
"""Of one table."""
MOST_TEXT_BYTES = 1 << 20
STEPS_A_CHECK = 100_000
"""Instructions of sqlite between two looks at the clock."""


class _OnlyMlflowError(Exception):
    """A database holds what MLflow alone can read."""


class _ForeignDatabaseError(Exception):
    """A database holds what MLflow does not write."""


def read_models(database: Path) -> tuple[list[Any], list[Any]] | None:
    """Return the registered models and all their versions, with MLflow's names for what they have.

    Args:
        database: The file of an sqlite store.

    Returns:
        Models (name, aliases) and versions (name, version, tags, run_id, creation_timestamp); None where it cannot be
        read in this way.

    Raises:
        UserError: It is no regular file, or holds what MLflow does not write.
    """
    try:
        open_regular(database, sys.maxsize).close()
        with closing(
            sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=WRITER_PATIENCE_SECONDS)
        ) as store:
            give_up = time.monotonic() + MOST_SECONDS
            store.set_progress_handler(lambda: time.monotonic() > give_up, STEPS_A_CHECK)
            store.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_TEXT_BYTES)
            if store.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                return [], []  # MLflow has not been here yet
            _check_tables(store)
            return _models(store), list(_versions(store))
    except OSError as error:
        raise UserError(f"{database}: cannot be read: {error.strerror or error}") from error
    except _ForeignDatabaseError as error:
        raise UserError(f"{database}: MLflow did not write it: {error}; name another store") from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_TOOBIG):
            raise UserError(
                f"{database}: holds more than is read of a registry ({error}); name another store"
            ) from error
        return None
    except _OnlyMlflowError:
        return None


def _check_tables(store: sqlite3.Connection) -> None:
    """Raise `_ForeignDatabaseError` where a table that is read is a view, virtual, or has computed columns."""
    for name in TABLES:
        query = "SELECT type, sql LIKE 'CREATE VIRTUAL%' FROM sqlite_master WHERE name = ? COLLATE NOCASE"
        hidden = store.execute("SELECT count(*) FROM pragma_table_xinfo(?) WHERE hidden <> 0", (name,)).fetchone()
        if store.execute(query, (name,)).fetchone() not in (None, ("table", 0)) or hidden != (0,):
            raise _ForeignDatabaseError(f"{name} is not a plain table")


def _rows(store: sqlite3.Connection, query: str, types: tuple[Any, ...], *parameters: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query whose columns have such types."""
    for number, row in enumerate(store.execute(query, parameters)):
        if number == MOST_ROWS:
            raise _ForeignDatabaseError(f"more than {MOST_ROWS:,} rows ({query})")
        if not all(map(isinstance, row, types)):
            raise _ForeignDatabaseError(f"a row with values of wrong types, {short(row)} ({query})")
        yield row


def _models(store: sqlite3.Connection) -> list[Any]:
    prompts = "SELECT name FROM registered_model_tags WHERE key = ? AND lower(value) = 'true'"
    query = f"SELECT name FROM registered_models WHERE name NOT IN ({prompts})"
    models: dict[str, Any] = {}
    for (name,) in _rows(store, query, (str,), PROMPT_TAG):
        if name in models:
            raise _OnlyMlflowError("a name is there in several workspaces")
        models[name] = SimpleNamespace(name=name, aliases={})
    query = "SELECT name, alias, version FROM registered_model_aliases"
    for name, alias, version in _rows(store, query, (str, str, int)):
        if name in models:
            models[name].aliases[alias] = version
    return list(models.values())


def _versions(store: sqlite3.Connection) -> Iterator[Any]:
    tags: dict[tuple[str, int], dict[str, str]] = {}
    query = "SELECT name, version, key, value FROM model_version_tags"
    for name, version, key, value in _rows(store, query, (str, int, str, str | None)):
        tags.setdefault((name, version), {})[key] = value or ""
    query = "SELECT name, version, run_id, creation_time FROM model_versions WHERE current_stage IS NOT ?"
    for name, version, run_id, created in _rows(store, query, (str, int, str | None, int | None), DELETED):
        yield SimpleNamespace(
            name=name,
            version=version,
            tags=tags.get((name, version), {}),
            run_id=run_id,
            creation_timestamp=created or 0,
        )
