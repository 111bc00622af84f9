"""A tracking store that cannot be used is told within its time, with the cure."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from yolofleet.tracking.mlflow_store import TrackingError, check_reachable, check_uri, default_tracking_uri


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


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are notes, not a database")
    with pytest.raises(TrackingError, match="not an sqlite database"):
        check_reachable(f"sqlite:///{tmp_path}/notes.txt")
    with pytest.raises(TrackingError, match="cannot be used"):
        check_reachable(f"sqlite:///{tmp_path}/notes.txt/mlflow.db")
