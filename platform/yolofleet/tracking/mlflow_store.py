"""Reaching an MLflow tracking server or database: which one, whether it answers, and a client that never blocks long.

MLflow's own defaults wait minutes for a server that is away (seven retries of two minutes each). `open_client` lowers
them unless the user's environment says otherwise, and `check_reachable` answers within its time whatever happens. What
may be repeated without harm is done by `patiently`, which tries again for a minute where a failure may pass by itself.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from yolofleet.core.background import within
from yolofleet.core.errors import UserError, WorkError, is_installed, require_package
from yolofleet.core.local_files import local_path
from yolofleet.core.redaction import is_ambiguous, redact, redact_error, redact_url
from yolofleet.core.retry import retry
from yolofleet.core.text import one_line, split_url

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from yolofleet.specs.tracking import TrackingSpec

CHECK_TIMEOUT_SECONDS = 20.0
CONNECT_TIMEOUT_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
"""How long `patiently` tries again."""
PROBE_PATIENCE_SECONDS = 8.0
OVERLOADED_STATUSES = (408, 429, 502, 503, 504)
SQLITE_PREFIX = "sqlite:///"
SQLITE_MAGIC = b"SQLite format 3\0"
STORE_FOLDER = "_mlflow"
"""Beside the runs; no run can have this name, for run names start with a letter or digit."""
DATABASE_SCHEMES = ("postgresql", "mysql", "mssql")
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
}
"""Set where the user's environment does not set them."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Says that an experiment is about models, not about prompts and traces."""
QUIET_LOGGERS = ("mlflow.store.db.utils", "mlflow.store.model_registry", "mlflow.pyfunc", "alembic")
"""They report created tables, waits that are none, and checked examples, which is of no use to a user."""

Result = TypeVar("Result")


class TrackingError(UserError):
    """The MLflow tracking URI is wrong, nothing answers there, or MLflow refuses what it is asked for."""


class TrackingFailureError(WorkError):
    """MLflow failed in a way that may pass by itself: a connection broke, or the server was overloaded."""


def default_tracking_uri(storage_url: str) -> str | None:
    """Return the URI of the sqlite database beside the runs of a folder; None for a remote storage."""
    parts = split_url(storage_url)
    if parts.scheme not in ("", "file"):
        return None
    folder = local_path(parts.path if parts.scheme == "file" else storage_url)
    return f"{SQLITE_PREFIX}{folder / STORE_FOLDER / 'mlflow.db'}"


def job_tracking_uri(tracking: TrackingSpec, storage_url: str) -> str | None:
    """Return the MLflow store that gets a job's run: the job's, else the database beside the runs.

    None: MLflow gets nothing, for there is no store beside a remote storage, or MLflow is not installed, nor asked for.

    Raises:
        MissingExtraError: The job names a store, or a model to register, and MLflow is not installed.
    """
    if tracking.uri is not None or tracking.register_as is not None:
        require_package("mlflow", ", or leave out tracking.uri and tracking.register_as")
    elif not is_installed("mlflow"):
        return None
    return tracking.uri or default_tracking_uri(storage_url)


def sqlite_path(tracking_uri: str) -> Path | None:
    """Return the absolute path of a ``sqlite:///`` URI's database, None for any other URI."""
    return local_path(tracking_uri.removeprefix(SQLITE_PREFIX)) if tracking_uri.startswith(SQLITE_PREFIX) else None


def check_uri(tracking_uri: str) -> None:
    """Raise `TrackingError` for a URI that MLflow cannot serve."""
    if is_ambiguous(tracking_uri):
        raise TrackingError(
            f"{redact_url(tracking_uri)}: clients disagree where its secret ends; percent-encode it "
            "(/ as %2F, @ as %40, a blank as %20), or give it in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    parts = split_url(tracking_uri, TrackingError)
    scheme = parts.scheme.partition("+")[0]
    if scheme in ("http", "https") and not parts.hostname:
        raise TrackingError(f"{redact(tracking_uri)}: a host is missing; write http://HOST:PORT")
    if scheme == "sqlite" and (not tracking_uri.startswith(SQLITE_PREFIX) or tracking_uri == SQLITE_PREFIX):
        raise TrackingError(f"{tracking_uri}: database file is missing; write sqlite:///PATH or sqlite:////ABSOLUTE")
    if scheme not in ("http", "https", "sqlite", "databricks", *DATABASE_SCHEMES):
        raise TrackingError(
            f"{redact(tracking_uri)}: not an MLflow tracking URI; use http://HOST:PORT, https://HOST, "
            "sqlite:///PATH/mlflow.db or postgresql://USER@HOST/DATABASE"
        )


def check_reachable(tracking_uri: str, timeout_seconds: float = CHECK_TIMEOUT_SECONDS) -> None:
    """Make sure that MLflow answers at ``tracking_uri``; returns or raises within ``timeout_seconds``.

    Raises:
        TrackingError: The URI is wrong, or nothing that speaks MLflow answers there in time.
        TrackingFailureError: MLflow answers that it cannot serve now.
    """
    check_uri(tracking_uri)
    require_package("mlflow")
    if (database := sqlite_path(tracking_uri)) is not None:
        _check_sqlite(database)
        return
    try:
        within(timeout_seconds, lambda: _probe(tracking_uri))
    except TimeoutError as error:
        raise TrackingError(
            f"MLflow at {redact(tracking_uri)} gave no answer within {timeout_seconds:g} s; check "
            "tracking.uri, the server and the network"
        ) from error


def find_tracking_uri(given: str | None = None, setting: str = "--tracking-uri") -> str:
    """Return the MLflow store to read: the given one, else MLFLOW_TRACKING_URI, else the one beside the runs.

    Args:
        given: The store that the user names.
        setting: Where the user may name it, for the message.

    Raises:
        TrackingError: There is none; reading must not create an empty database.
        MissingExtraError: MLflow is not installed: no store could be read.
    """
    require_package("mlflow")
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri("runs")
    database = None if uri is None else sqlite_path(uri)
    if uri is None or (database is not None and not database.exists()):
        raise TrackingError(
            f"there is no MLflow store at {database or 'runs'}; name it with {setting} or MLFLOW_TRACKING_URI"
        )
    return uri


@contextmanager
def mlflow_errors(tracking_uri: str) -> Iterator[None]:
    """Turn what MLflow raises inside the block into an error that names the store.

    Raises:
        TrackingFailureError: MLflow failed in a way that may pass by itself.
        TrackingError: MLflow refused, and would again.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        reason = f"MLflow at {redact(tracking_uri)}: {one_line(error, 400)}"
        if is_transient(error):
            advice = "such a failure may be temporary: run the same command again"
            raise TrackingFailureError(f"{reason}; {advice}") from redact_error(error)
        raise TrackingError(reason) from redact_error(error)


def is_transient(error: BaseException) -> bool:
    """Return whether a failure of MLflow may pass by itself: a broken connection, an overloaded or failing server."""
    from mlflow.exceptions import MlflowException, RestException
    from requests.exceptions import ChunkedEncodingError, HTTPError, RetryError, SSLError, Timeout
    from requests.exceptions import ConnectionError as BrokenConnectionError

    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in OVERLOADED_STATUSES
    if isinstance(error, BrokenConnectionError | ChunkedEncodingError | RetryError | Timeout):
        return not isinstance(error, SSLError)
    if not isinstance(error, MlflowException):
        return False
    if isinstance(error, RestException) and error.get_http_status_code() >= 500:
        return True
    origin = error.__cause__ or error.__context__  # MLflow's errors name no kind: an older database is a 500, too
    return error.get_http_status_code() in OVERLOADED_STATUSES or (origin is not None and is_transient(origin))


def patiently(tracking_uri: str, action: Callable[[], Result], *, give_up: float | None = None) -> Result:
    """Do what may be repeated without harm, again while MLflow fails in a way that may pass by itself.

    Args:
        tracking_uri: The MLflow server or database, for messages.
        action: What to do.
        give_up: When no attempt begins any more, by `time.monotonic`; `PATIENCE_SECONDS` from now by default.

    Raises:
        TrackingFailureError: It failed until the end.
        TrackingError: MLflow refused.
    """
    seconds = PATIENCE_SECONDS if give_up is None else max(0.0, give_up - time.monotonic())
    with mlflow_errors(tracking_uri):
        return retry(action, patience_seconds=seconds, is_transient=is_transient)


def open_client(tracking_uri: str) -> MlflowClient:
    """Return a client whose calls end within seconds when the server is away; creates a missing sqlite database.

    Raises:
        TrackingError: The URI is wrong.
    """
    check_uri(tracking_uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    database = sqlite_path(tracking_uri)
    uri = tracking_uri if database is None else f"{SQLITE_PREFIX}{database}"
    with nullcontext() if database is None else _first_use_lock(database):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


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


def _probe(tracking_uri: str) -> None:
    parts = split_url(tracking_uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT_SECONDS).close()
        except OSError as error:
            raise TrackingError(
                f"nothing answers at {redact(tracking_uri)} ({error}); start it with "
                "`mlflow server`, or correct tracking.uri"
            ) from error
    try:
        search = partial(open_client(tracking_uri).search_experiments, max_results=1)
        retry(search, patience_seconds=PROBE_PATIENCE_SECONDS, is_transient=is_transient)
    except ModuleNotFoundError as error:
        raise TrackingError(
            f"{redact(tracking_uri)} needs the Python package of its database driver ({error.name}), which "
            "is not installed: install it, or name the driver that is there, e.g. postgresql+psycopg2://..."
        ) from error
    except Exception as error:  # MLflow, requests and every database driver have errors of their own
        reason = one_line(error)
        if is_transient(error):
            raise TrackingFailureError(
                f"MLflow at {redact(tracking_uri)} cannot serve now: {reason}; try again, or look at the server's log"
            ) from redact_error(error)
        raise TrackingError(
            f"MLflow at {redact(tracking_uri)} does not work: {reason}; check tracking.uri, the credentials "
            "(MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN) and the server's "
            "--allowed-hosts"
        ) from redact_error(error)


def _check_sqlite(database: Path) -> None:
    try:
        if database.exists():
            with database.open("r+b") as file:
                head = file.read(len(SQLITE_MAGIC))
            if head not in (b"", SQLITE_MAGIC):
                raise TrackingError(f"{database}: is not an sqlite database; correct tracking.uri")
        else:
            there = next(folder for folder in database.parents if folder.exists())
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                raise TrackingError(f"{database.parent}: cannot be used (not writable); correct tracking.uri")
    except OSError as error:
        raise TrackingError(f"{database}: cannot be used ({error.strerror}); correct tracking.uri") from error


@contextmanager
def _first_use_lock(database: Path) -> Iterator[None]:
    """Let one process at a time open the database: the first one creates its tables."""
    _check_sqlite(database)
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("ab") as file:  # closing it also unlocks
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
