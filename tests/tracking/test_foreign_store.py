"""Credentials of MLflow go only to stores that the user names: no run, search or registry of a stranger gets them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from yolofleet.cli.main import main
from yolofleet.registry.version_files import _open_repository
from yolofleet.tracking.foreign_store import CREDENTIALS, refuse_foreign
from yolofleet.tracking.mlflow_store import TrackingError

TOKEN = "a-token-that-nobody-gets"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CREDENTIALS, "MLFLOW_TRACKING_URI", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


class Stranger(HTTPServer):
    """A server that answers as an empty MLflow, and keeps what clients show it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.seen: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Stranger)
        self.server.seen.append(self.headers.get("Authorization"))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    with Stranger() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def run(tmp_path: Path, stranger: Stranger) -> Path:
    """A stranger's run, which names a server of the stranger's."""
    folder = tmp_path / "runs" / "theirs"
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(f"name: theirs\ntracking: {{uri: '{stranger.url}'}}\n")
    return folder


@pytest.mark.parametrize("variable", CREDENTIALS)
def test_a_run_that_names_a_server_gets_no_credentials_by_any_command(
    variable: str, run: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv(variable, TOKEN)
    assert main(["runs", "show", str(run), "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["versions_unknown"]
    assert stranger.url in line and "job.yaml names it" in line and variable in line and "MLFLOW_TRACKING_URI" in line
    assert main(["runs", "remove", str(run), "--yes"]) == 1
    assert main(["runs", "gc", str(run.parent), "--older-than", "0h", "--state", "failed", "--yes"]) == 0
    assert main(["report", str(run), "--sync"]) == 2
    assert "was not asked" in capsys.readouterr().err
    assert run.exists() and stranger.seen == []


def test_a_server_that_the_user_names_or_that_gets_nothing_is_asked(
    run: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["runs", "show", str(run)]) == 0
    assert stranger.seen and set(stranger.seen) == {None}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    stranger.seen.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{stranger.url}/")
    assert main(["runs", "show", str(run)]) == 0
    assert set(stranger.seen) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("uri", "own", "is_refused"),
    [
        ("http://own", "http://own:80/path", False),
        ("http://OWN:5000", "http://own:5000", False),
        ("https://own", "http://own", True),
        ("http://own:5001", "http://own:5000", True),
        ("http://own.example:5000", "http://own:5000", True),
        ("http://own:5000@other", "http://own:5000", True),
        ("http://other", "sqlite:///mlflow.db", True),
        ("http://other", None, True),
        ("postgresql://other/db", "sqlite:///mlflow.db", True),
        ("postgresql://other/db", "postgresql://other/db", False),
        ("sqlite:////somewhere/mlflow.db", "http://own", False),
    ],
)
def test_only_the_same_scheme_host_and_port_is_the_users_own(
    uri: str, own: str | None, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    if is_refused:
        with pytest.raises(TrackingError, match=r"was not asked: only their run names it"):
            refuse_foreign(uri, (own,), "their run")
    else:
        refuse_foreign(uri, (own,), "their run")


def test_credentials_in_files_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_foreign("http://other", (), "their run")
    (tmp_path / "netrc").write_text("default login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(TrackingError, match="netrc"):
        refuse_foreign("http://other", (), "their run")
    monkeypatch.delenv("NETRC")
    (tmp_path / "home" / ".mlflow").mkdir(parents=True)
    (tmp_path / "home" / ".mlflow" / "credentials").write_text("[mlflow]\n")
    with pytest.raises(TrackingError, match=r"\.mlflow/credentials"):
        refuse_foreign("http://other", (), "their run")


@pytest.mark.parametrize("location", ["{url}/files", "mlflow-artifacts://127.0.0.1:{port}/files"])
def test_a_version_whose_files_lie_on_another_server_gets_no_credentials(
    location: str, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    place = location.format(url=stranger.url, port=stranger.server_port)
    with pytest.raises(TrackingError, match="only the registry names it"):
        _open_repository("http://localhost:9", place)
    _open_repository("http://127.0.0.1:9", place)  # MLflow's server of artifacts alone has a port of its own
    assert stranger.seen == []
