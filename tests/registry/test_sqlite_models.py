"""Reading an sqlite store without MLflow: what MLflow did not write is refused, and nothing runs without an end."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from yolofleet.core.errors import UserError
from yolofleet.registry import sqlite_models
from yolofleet.registry.sqlite_models import read_models
from yolofleet.registry.versions import browse_versions

TABLES = """
CREATE TABLE registered_models(name);
CREATE TABLE registered_model_tags(name, key, value);
CREATE TABLE registered_model_aliases(name, alias, version);
CREATE TABLE model_version_tags(name, version, key, value);
CREATE TABLE model_versions(name, version, run_id, creation_time, current_stage);
INSERT INTO registered_models VALUES ('shapes');
INSERT INTO model_versions VALUES ('shapes', 1, NULL, 5, 'None');
"""
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS name FROM c"


def store(path: Path, script: str) -> Path:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(TABLES + script)
        database.commit()
    return path


def test_the_tables_of_mlflow_are_read(tmp_path: Path) -> None:
    found = read_models(store(tmp_path / "mlflow.db", "CREATE VIEW other AS SELECT 1"))
    assert found is not None
    assert [model.name for model in found[0]] == ["shapes"]
    assert [(version.name, version.version, version.creation_timestamp) for version in found[1]] == [("shapes", 1, 5)]


@pytest.mark.parametrize(
    "script",
    [
        f"DROP TABLE registered_models; CREATE VIEW registered_models AS {ENDLESS};",
        "ALTER TABLE model_versions ADD COLUMN x GENERATED ALWAYS AS (zeroblob(1000000000)) VIRTUAL;",
        "INSERT INTO model_versions VALUES ('shapes', 2, NULL, 1e400, 'None');",
        "INSERT INTO model_versions VALUES ('shapes', 1e300, NULL, 5, 'None');",
        "INSERT INTO registered_models VALUES (5);",
        "INSERT INTO model_version_tags VALUES ('shapes', 1, 'k', zeroblob(5000000));",
    ],
)
def test_what_mlflow_does_not_write_is_refused(script: str, tmp_path: Path) -> None:
    database = store(tmp_path / "mlflow.db", script)
    with pytest.raises(UserError, match=r"mlflow\.db: .*name another store"):
        browse_versions(f"sqlite:///{database}")


def test_more_rows_or_more_time_than_any_registry_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = store(tmp_path / "mlflow.db", "INSERT INTO registered_models VALUES ('other');")
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_models, "MOST_ROWS", 1)
        with pytest.raises(UserError, match="more than 1 rows"):
            read_models(database)
    monkeypatch.setattr(sqlite_models, "MOST_SECONDS", -1.0)
    monkeypatch.setattr(sqlite_models, "STEPS_A_CHECK", 1)
    with pytest.raises(UserError, match="interrupted"):
        read_models(database)


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mlflow.db")
    with pytest.raises(UserError, match="not a regular file"):
        read_models(tmp_path / "mlflow.db")


def test_a_database_that_only_mlflow_can_read_is_left_alone_where_the_user_does_not_name_it(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE cookies(name)")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"only MLflow itself can read it"):
        browse_versions(f"sqlite:///{path}", may_load_mlflow=False)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["other.db"]


def test_a_database_without_any_table_has_no_models(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()  # what a first start leaves that was killed
    assert read_models(tmp_path / "mlflow.db") == ([], [])
