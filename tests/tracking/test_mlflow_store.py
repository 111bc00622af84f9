"""A tracking store that cannot be used is told within its time, with the cure."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import TEMPORARILY_UNAVAILABLE, MlflowException, RestException
from requests import Response
from requests.exceptions import ChunkedEncodingError, HTTPError, ReadTimeout, RetryError, SSLError
from requests.exceptions import ConnectionError as BrokenConnectionError

from yolofleet.core.errors import UserError
from yolofleet.tracking import mlflow_store
from yolofleet.tracking.mlflow_store import (
    TrackingError,
    TrackingFailureError,
    check_reachable,
    check_uri,
    default_tracking_uri,
    is_transient,
    patiently,
)


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("./mlruns", "not an MLflow tracking URI"),
        ("file:///tmp/mlruns", "sqlite:///PATH"),
        ("htp://server:5000", "not an MLflow tracking URI"),
        ("http://", "host is missing"),
        ("sqlite://", "database file is missing"),
        ("sqlite:///", "database file is missing"),
        ("http://127.0.0.1:99999", "port is wrong"),
        ("http://[::1:5000", "host or port is wrong"),
        ("http://me:secret@[x", r"http://\*\*\*@\[x: its host or port is wrong"),
        ("http://me:pa/ss@127.0.0.1", r"http://\*\*\*@127.0.0.1: .* percent-encode it"),
        ("postgresql://me:p@ss:word@127.0.0.1/db", r"postgresql://\*\*\*@127.0.0.1/db: .* percent-encode it"),
        ("postgresql+nosuchdriver://me:secret@127.0.0.1/db", r"//\*\*\*@"),
    ],
)
def test_wrong_uris(uri: str, complaint: str) -> None:
    with pytest.raises(TrackingError, match=complaint):
        check_reachable(uri)


def test_the_default_store_lies_beside_the_runs(tmp_path: Path) -> None:
    assert default_tracking_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/_mlflow/mlflow.db"
    assert default_tracking_uri(f"file://{tmp_path}") == f"sqlite:///{tmp_path}/_mlflow/mlflow.db"
    assert default_tracking_uri("s3://bucket/runs") is None
    with pytest.raises(UserError, match=r"s3://\[bucket\]/runs: its host or port is wrong"):
        default_tracking_uri("s3://[bucket]/runs")
    check_uri("postgresql+psycopg2://me@host/db")


def test_a_refused_connection() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(TrackingError, match=r"nothing answers at http://127\.0\.0\.1.*mlflow server"):
        check_reachable(f"http://127.0.0.1:{port}")
    assert time.monotonic() - begin < 30


def test_a_server_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        with pytest.raises(TrackingError, match="no answer within 1 s"):
            check_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=1)
        assert time.monotonic() - begin < 30


class _OtherService(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"<html>something else</html>")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_is_not_mlflow() -> None:
    server = HTTPServer(("127.0.0.1", 0), _OtherService)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TrackingError, match="does not work"):
            check_reachable(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


class _Overloaded(_OtherService):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815


def test_a_server_that_cannot_serve_now_is_no_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "PROBE_PATIENCE_SECONDS", 0.1)
    server = HTTPServer(("127.0.0.1", 0), _Overloaded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TrackingFailureError, match="cannot serve now"):
            check_reachable(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def _answered(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(f"{status}", response=response)


def _caused_by(error: Exception) -> MlflowException:
    """As MLflow's client raises it when a request failed."""
    try:
        try:
            raise error
        except Exception as reason:
            raise MlflowException(f"API request failed with exception {reason}")  # noqa: B904
    except MlflowException as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (BrokenConnectionError("reset"), True),
        (ReadTimeout("10 s"), True),
        (ChunkedEncodingError("the half of it"), True),
        (_caused_by(RetryError("too many 503")), True),
        (_caused_by(BrokenConnectionError("refused")), True),
        (MlflowException("database is locked", TEMPORARILY_UNAVAILABLE), True),
        (RestException({"error_code": "INTERNAL_ERROR", "message": "of the server"}), True),
        *((_answered(status), True) for status in (408, 429, 500, 502, 503)),
        *((_answered(status), False) for status in (400, 401, 403, 404, 413)),
        (MlflowException("out-of-date database schema"), False),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such version"}), False),
        (_caused_by(SSLError("unknown authority")), False),
        (ValueError("ours"), False),
    ],
    ids=str,
)
def test_only_what_may_pass_by_itself_is_tried_again(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient
    failures = [error]

    def act() -> str:
        if failures:
            raise failures.pop()
        return "done"

    if transient:
        assert patiently("http://127.0.0.1", act) == "done"
    elif isinstance(error, ValueError):
        with pytest.raises(ValueError, match="ours"):
            patiently("http://127.0.0.1", act)
    else:
        with pytest.raises(TrackingError):
            patiently("http://127.0.0.1", act)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are notes, not a database")
    with pytest.raises(TrackingError, match="not an sqlite database"):
        check_reachable(f"sqlite:///{tmp_path}/notes.txt")
    with pytest.raises(TrackingError, match="cannot be used"):
        check_reachable(f"sqlite:///{tmp_path}/notes.txt/mlflow.db")
