"""A file behind a URL: fetched once, whole, the one that was meant, and from nowhere that was not."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.https_server import FileServer, Page, serve_https, serve_proxy
from yolofleet.core.errors import UserError
from yolofleet.storage import https_file, https_request
from yolofleet.storage.https_file import FetchError, check_url, fetch_file

DATA = random.Random(0).randbytes(3_000_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server that is trusted, and a cache of its own."""
    monkeypatch.setenv("YOLOFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLOFLEET_URL_HOSTS", "localhost")
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(https_file, "PATIENCE_SECONDS", 0.0)
    with serve_https(tmp_path / "tls") as running:
        monkeypatch.setenv("SSL_CERT_FILE", running.authority)
        running.pages["/v7.pt"] = Page(DATA)
        yield running


def fetch(url: str, digest: str = DIGEST, lines: list[str] | None = None) -> Path:
    return fetch_file(url, digest, ".pt", (lines if lines is not None else []).append)


def kept(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache/weights").iterdir() if path.suffix != ".lock"}


def test_a_file_is_fetched_once_and_kept_for_this_user_alone(server: FileServer, tmp_path: Path) -> None:
    lines: list[str] = []
    path = fetch(f"{server.url}/v7.pt", lines=lines)
    assert path.read_bytes() == DATA and kept(tmp_path) == {f"{DIGEST}.pt"}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert lines[0].startswith(f"fetching {server.url}/v7.pt: 0") and "3.0 MB" in lines[0]
    assert fetch(f"{server.url}/v7.pt") == path
    assert fetch("https://another.example/v7.pt") == path, "the digest says which file it is"
    assert len(server.requests) == 1
    assert not {"Cookie", "Authorization", "Referer"} & {*server.requests[0]}


def test_what_was_damaged_on_the_disk_is_fetched_again(server: FileServer) -> None:
    path = fetch(f"{server.url}/v7.pt")
    path.write_bytes(DATA[:-1] + b"x")
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA and len(server.requests) == 2


def test_a_download_resumes_where_it_broke_off(server: FileServer, tmp_path: Path) -> None:
    server.pages["/v7.pt"].break_offs = [400_000]
    with pytest.raises(FetchError, match=r"connection broke off; 400 kB are kept, and the next attempt resumes"):
        fetch(f"{server.url}/v7.pt")
    assert f"{DIGEST}.part" in kept(tmp_path)
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA
    assert server.ranges == [None, "bytes=400000-"] and server.requests[1]["If-Range"] == '"1"'
    assert kept(tmp_path) == {f"{DIGEST}.pt"}


def test_break_offs_that_leave_progress_are_gone_over_at_once(server: FileServer) -> None:
    server.pages["/v7.pt"].break_offs = [1_200_000, 1_100_000]
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA
    assert server.ranges == [None, "bytes=1200000-", "bytes=2300000-"]


@pytest.mark.parametrize(
    "page",
    [Page(DATA, tag=None), Page(DATA, tag='W/"1"'), Page(DATA, ranges=False)],
    ids=["no tag", "weak", "no ranges"],
)
def test_the_same_bytes_again_are_no_progress(page: Page, server: FileServer) -> None:
    page.break_offs = [1_200_000] * 9
    server.pages["/v7.pt"] = page
    with pytest.raises(FetchError, match="connection broke off"):
        fetch(f"{server.url}/v7.pt")
    assert len(server.requests) == 2
    page.break_offs = [1_100_000, 2_300_000]  # each further than ever, but a server may send all of it at last
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA


def test_a_server_that_refuses_every_range_or_request_is_left(server: FileServer, tmp_path: Path) -> None:
    server.pages["/v7.pt"].break_offs = [400_000]
    with pytest.raises(FetchError):
        fetch(f"{server.url}/v7.pt")
    server.pages["/v7.pt"].status = 416
    with pytest.raises(FetchError, match="answers 416"):
        fetch(f"{server.url}/v7.pt")
    assert server.ranges == [None, "bytes=400000-", None]
    server.pages["/v7.pt"] = Page(DATA[:500], break_offs=[200], tag='"1"')  # shorter than the part, and cut off
    (tmp_path / f"cache/weights/{DIGEST}.part").write_bytes(DATA[:600])
    with pytest.raises(FetchError, match="connection broke off"):
        fetch(f"{server.url}/v7.pt")
    assert server.ranges[3:] == ["bytes=600-", None]


def test_a_file_that_changed_meanwhile_is_fetched_whole(server: FileServer) -> None:
    server.pages["/v7.pt"] = Page(b"old" * 500_000, break_offs=[300_000], tag='"0"')
    with pytest.raises(FetchError):
        fetch(f"{server.url}/v7.pt")
    server.pages["/v7.pt"] = Page(DATA)
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA


@pytest.mark.parametrize("tag", [None, 'W/"1"'])
def test_without_a_strong_validator_nothing_is_joined(tag: str | None, server: FileServer) -> None:
    server.pages["/v7.pt"] = Page(DATA, break_offs=[400_000], tag=tag)
    with pytest.raises(FetchError):
        fetch(f"{server.url}/v7.pt")
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA
    assert server.ranges == [None, None]


def test_a_part_of_another_file_is_noticed_and_fetched_whole(server: FileServer, tmp_path: Path) -> None:
    server.pages["/v7.pt"].break_offs = [400_000]
    with pytest.raises(FetchError):
        fetch(f"{server.url}/v7.pt")
    (tmp_path / f"cache/weights/{DIGEST}.part").write_bytes(b"x" * 400_000)
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA


@pytest.mark.parametrize("num_bytes", [len(DATA), len(DATA) + 5])
def test_a_part_as_long_as_the_file_is_asked_for_anew(num_bytes: int, server: FileServer, tmp_path: Path) -> None:
    server.pages["/v7.pt"].break_offs = [400_000]
    with pytest.raises(FetchError):
        fetch(f"{server.url}/v7.pt")
    (tmp_path / f"cache/weights/{DIGEST}.part").write_bytes((DATA + b"12345")[:num_bytes])
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA


def test_another_digest_removes_what_came_unread(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=rf"its SHA-256 is {DIGEST}, not {'0' * 64}.*Ask its publisher"):
        fetch(f"{server.url}/v7.pt", "0" * 64)
    assert not any(name.endswith((".pt", ".part")) for name in kept(tmp_path))


@pytest.mark.parametrize(
    ("page", "part"),
    [
        (Page(status=404), "no such file"),
        (Page(status=403), "asks for a login, but none is sent"),
        (Page(status=500), "answers 500.*give its path"),
        (Page(status=418), "answers 418"),
        (Page(headers={"Content-Length": str(2**40)}), "it has 1.1 TB, more than the"),
        (Page(status=302, headers={"Location": "http://localhost/v7.pt"}), "leads to http://, and only https"),
        (Page(status=302, headers={"Location": "https://127.0.0.1/v7.pt"}), r"127\.0\.0\.1.*YOLOFLEET_URL_HOSTS"),
        (Page(status=302, headers={"Location": "https://[::ffff:10.0.0.1]/v7.pt"}), r"10\.0\.0\.1|:a00:1"),
        (Page(status=302, headers={"Location": "file:///etc/passwd"}), "answers 302"),
        (Page(status=302, headers={"Location": "/odd"}), "answers 302"),
        (Page(status=302, headers={"Location": "https://[x/v7.pt"}), "leads to what is no URL"),
        (Page(status=302, headers={"Location": "https://a..b/v7.pt"}), "'https://a..b/v7.pt' is not a URL"),
        (Page(status=302, headers={"Location": "https://127%2e0%2e0%2e1/v7.pt"}), "written plainly, without %"),
        (Page(status=416), "answers 416"),
    ],
)
def test_what_cannot_be_fetched_says_why(page: Page, part: str, server: FileServer) -> None:
    server.pages["/odd"] = page
    with pytest.raises(UserError, match=part):
        fetch(f"{server.url}/odd")


def test_a_redirection_to_a_trusted_host_is_followed(server: FileServer) -> None:
    server.pages["/latest"] = Page(status=302, headers={"Location": "/v7.pt?X-Amz-Signature=abc"})
    assert fetch(f"{server.url}/latest").read_bytes() == DATA


def test_a_server_that_is_busy_is_asked_again(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https_file, "PATIENCE_SECONDS", 20.0)
    server.pages["/v7.pt"].failures = 2
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA and len(server.requests) == 3


def test_an_answer_without_end_is_cut_off(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https_file, "MOST_BYTES", 2_000_000)
    server.pages["/v7.pt"].chunked = True
    with pytest.raises(FetchError, match=r"more than the 2.0 MB"):
        fetch(f"{server.url}/v7.pt")


def test_a_host_of_this_machine_or_network_is_refused_unless_it_is_named(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("YOLOFLEET_URL_HOSTS")
    port = server.url.rpartition(":")[2]
    for host in ("localhost", "127.0.0.1", "[::1]", "169.254.169.254", "10.1.2.3", "[fd00::1]", "100.100.100.200"):
        with pytest.raises(FetchError, match=r"of this machine or of a private network.*YOLOFLEET_URL_HOSTS"):
            fetch(f"https://{host}:{port}/v7.pt")
    assert not server.requests
    monkeypatch.setenv("YOLOFLEET_URL_HOSTS", f"other.example, localhost:{port}")
    assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA


def test_a_certificate_that_is_not_trusted_is_refused_with_the_variable(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(FetchError, match=r"certificate is not trusted.*SSL_CERT_FILE"):
        fetch(f"{server.url}/v7.pt")
    assert not server.requests


@pytest.mark.parametrize("login", ["user:right", "user:wrong"])
def test_a_proxy_is_used_and_its_password_is_in_no_message(
    login: str, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/v7.pt"].break_offs = [] if login.endswith("right") else [0]
    with serve_proxy(int(server.url.rpartition(":")[2]), "user:right") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{login}@{proxy.url}")
        if login.endswith("right"):
            assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA
        else:
            with pytest.raises(FetchError, match=r"proxy of HTTPS_PROXY refuses it \(407") as refused:
                fetch(f"{server.url}/v7.pt")
            assert "wrong" not in str(refused.value)
        assert {*proxy.tunnels} == {server.url.removeprefix("https://")}
        monkeypatch.setenv("NO_PROXY", "localhost")
        server.pages["/v7.pt"].break_offs = []
        assert fetch(f"{server.url}/v7.pt").read_bytes() == DATA


def test_without_a_network_the_kept_file_is_enough_and_the_other_says_what_to_do(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(f"{server.url}/v7.pt")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert fetch("https://weights.example/v7.pt") == path
    with pytest.raises(FetchError, match=r"name is not found; check that this machine has a network, .*HTTPS_PROXY"):
        fetch("https://weights.example/v7.pt", "0" * 64)


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("http://host.example/v7.pt", "only fetched by https"),
        ("ftp://host.example/v7.pt", "only fetched by https"),
        ("https://user@host.example/v7.pt", "no user, token or password"),
        ("https://host.example/v7.pt?token=abcdef", "no user, token or password"),
        ("https:///v7.pt", "https://HOST/PATH"),
        ("https://host.example/v 7.pt", "without blanks"),
        ("https://host.example:port/v7.pt", "is not a URL"),
        ("https://[x/v7.pt", "is not a URL"),
        ("https://a..b/v7.pt", "is not a URL"),
        (f"https://{'a' * 64}.example/v7.pt", "is not a URL"),
        ("https://internal%2ecorp/v7.pt", "written plainly, without %"),
        ("https://localhos%74:8443/v7.pt", "written plainly, without %"),
        ("https://169%2e254%2e169%2e254/v7.pt", "written plainly, without %"),
    ],
)
def test_a_url_that_is_none_is_refused_before_anything_is_asked(url: str, part: str) -> None:
    with pytest.raises(FetchError, match=part) as refused:
        check_url(url)
    assert "abcdef" not in str(refused.value)


def test_a_cache_that_others_may_write_to_is_refused(server: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "cache/weights"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(UserError, match=r"others can write there.*YOLOFLEET_CACHE"):
        fetch(f"{server.url}/v7.pt")
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match="or it is a link"):
        fetch(f"{server.url}/v7.pt")


def test_a_link_in_the_cache_is_not_followed(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "cache/weights").mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f"cache/weights/{DIGEST}.part").symlink_to(tmp_path / "precious")
    with pytest.raises(FetchError):
        fetch(f"{server.url}/v7.pt")
    assert (tmp_path / "precious").read_text() == "mine"


def _fetch_in_process(url: str, results: multiprocessing.Queue[str]) -> None:
    results.put(str(fetch(url)))


def test_processes_that_want_the_same_file_fetch_it_once(server: FileServer) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=_fetch_in_process, args=(f"{server.url}/v7.pt", results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    paths = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(paths) == 1 and len(server.requests) == 1


def test_the_public_part_of_the_address_space_is_public() -> None:
    assert https_request._is_public("140.82.121.3") and https_request._is_public("2606:50c0:8000::154")
