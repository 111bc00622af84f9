"""`report --serve`: pages of a run and of a search's trials on loopback, to this machine's own browser alone."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from yolofleet.core.errors import UserError
from yolofleet.search.live_page import LivePages, page_server, serve_page
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory

JOB = "name: demo\nmodel: {name: yolov7-tiny}\ndata: {train: a, val: b}\n"


def make_run(folder: Path) -> RunDirectory:
    with RunDirectory(open_storage(folder)) as run:
        run.write_job(JOB)
        run.append_event("start", step=0, num_steps=100, workers=1)
        run.append_metrics({"step": 10, "loss": 0.5})
    return run


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Serve a directory; yields the port."""
    with page_server(open_storage(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def get(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Ask for a page; returns its status, its tag and its text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.headers.get("ETag", ""), answer.read().decode()


def test_the_page_is_sent_when_it_has_changed(tmp_path: Path) -> None:
    make_run(tmp_path / "demo")
    with serving(tmp_path / "demo") as port:
        status, tag, page = get(port)
        assert status == 200 and "data-live" in page and "connect-src &#39;self&#39;" in page
        assert get(port, If_None_Match=tag) == (304, tag, "")
        assert get(port, "/job.yaml")[0] == get(port, "/../job.yaml")[0] == 404
        assert get(port, method="POST")[0] == 501


def test_another_site_s_name_for_this_machine_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "demo")
    with serving(tmp_path / "demo") as port:
        assert get(port, Host="evil.example")[0] == get(port, Host=f"evil.example:{port}")[0] == 403
        assert get(port, Host=f"localhost:{port}")[0] == 200


def test_a_page_follows_the_directory_but_is_not_made_for_every_request(tmp_path: Path) -> None:
    run, now = make_run(tmp_path / "demo"), [0.0]
    pages = LivePages(open_storage(tmp_path / "demo"), clock=lambda: now[0])
    first = pages.page("/")
    with run:
        run.append_event("failed", reason="the disk is full")
    assert pages.page("/") == first
    now[0] = 60.0
    assert b"the disk is full" in (pages.page("/") or b"")


def test_a_browser_that_leaves_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "demo")
    with page_server(open_storage(tmp_path / "demo"), 0) as server:
        for error in (BrokenPipeError(), ConnectionResetError()):
            try:
                raise error
            except ConnectionError:
                server.handle_error(None, None)
    assert capsys.readouterr() == ("", "")


def test_a_run_that_vanishes_is_said_and_comes_back(tmp_path: Path) -> None:
    make_run(tmp_path / "demo")
    now = [0.0]
    pages = LivePages(open_storage(tmp_path / "demo"), clock=lambda: now[0])
    assert pages.page("/")
    (tmp_path / "demo").rename(tmp_path / "away")
    now[0] = 60.0
    with pytest.raises(UserError, match="holds neither a run"):
        pages.page("/")
    (tmp_path / "away").rename(tmp_path / "demo")
    assert pages.page("/")


def test_ctrl_c_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(server: ThreadingHTTPServer, poll_interval: float) -> None:
        raise KeyboardInterrupt

    make_run(tmp_path / "demo")
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupt)
    said: list[str] = []
    serve_page(open_storage(tmp_path / "demo"), 0, said.append)
    assert said[0].startswith("http://127.0.0.1:") and said[1:] == ["ended"]


def test_a_folder_without_a_run_and_a_port_that_is_taken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run"):
        page_server(open_storage(tmp_path), 0)
    make_run(tmp_path / "demo")
    with serving(tmp_path / "demo") as port, pytest.raises(UserError, match="cannot be opened"):
        page_server(open_storage(tmp_path / "demo"), port)
