"""A file behind an ``https://`` URL: fetched once, verified by its SHA-256, kept in a folder of this user alone.

A download that broke off resumes where it stopped, with ``If-Range``, so that bytes of two versions are never joined.
Content with another digest is removed unread.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import OpenerDirector, Request

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.local_files import CHUNK_BYTES, cache_folder, file_sha256, private_folder
from yolofleet.core.retry import retry
from yolofleet.storage.https_request import (
    BY_HAND,
    TIMEOUT_SECONDS,
    FetchError,
    check_host,
    check_url,
    explain_failure,
    make_opener,
)

__all__ = ["FetchError", "check_url", "fetch_file"]

MOST_BYTES = 4 * 2**30
"""The largest published training state has a quarter of it."""
PATIENCE_SECONDS = 20.0
"""Time without progress in which a connection that fails is tried again."""
LEAST_PROGRESS_BYTES = 1 << 20
NOTICE_SECONDS = 10.0
TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)

Notify = Callable[[str], None]


class _BrokenOffError(Exception):
    """The connection failed; another attempt may resume it."""


def fetch_file(url: str, sha256: str, suffix: str, notify: Notify) -> Path:
    """Return a local copy of the file behind a URL, whose digest has just been verified.

    Args:
        url: An ``https://`` URL.
        sha256: The file's SHA-256, 64 small hexadecimal digits.
        suffix: Ending of the copy's name.
        notify: Prints a line about what is done.

    Raises:
        FetchError: It cannot be fetched, is larger than 4 GiB, or is another file; says what to do.
    """
    check_url(url)
    folder = private_folder(cache_folder() / "weights")
    whole, part = folder / f"{sha256}{suffix}", folder / f"{sha256}.part"
    try:
        with _locked(folder / f"{sha256}.lock", url, notify):
            if whole.exists() and file_sha256(whole) == sha256:
                return whole
            whole.unlink(missing_ok=True)  # damaged on the disk
            resumes = part.exists()
            _download(url, part, notify)
            found = file_sha256(part)
            if found != sha256 and resumes:
                notify(f"{url}: the kept part belongs to another file; downloading all of it")
                part.unlink()
                _download(url, part, notify)
                found = file_sha256(part)
            if found != sha256:
                part.unlink()
                raise FetchError(
                    f"{url}: its SHA-256 is {found}, not {sha256}: the file has changed, or the digest is of another "
                    "one; nothing in it was read. Ask its publisher which is right"
                )
            part.replace(whole)
            _validator_of(part).unlink(missing_ok=True)
    except OSError as error:
        cure = "free space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it private"
        raise FetchError(
            f"{folder}: {error.strerror or error}; {cure}, or name another folder in YOLOFLEET_CACHE"
        ) from None
    return whole


@contextmanager
def _locked(path: Path, url: str, notify: Notify) -> Iterator[None]:
    """Hold a lock; the system gives it up for a process that was killed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"another process fetches {url}; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Progress:
    """How far a download is, and lines about it."""

    def __init__(self, url: str, notify: Notify) -> None:
        self._url, self._notify = url, notify
        self._next_seconds = 0.0
        self.most_bytes = 0
        """The largest size so far: a server that cannot resume sends the same bytes again, and that is no progress."""
        self.may_resume = True

    def show(self, done_bytes: int, total_bytes: int | None) -> None:
        if time.monotonic() >= self._next_seconds:
            self._next_seconds = time.monotonic() + NOTICE_SECONDS
            of_total = "" if total_bytes is None else f" of {format_bytes(total_bytes)}"
            self._notify(f"fetching {self._url}: {format_bytes(done_bytes)}{of_total}")


def _download(url: str, part: Path, notify: Notify) -> None:
    """Fetch a file, resuming after what is there of it."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    progress, opener = _Progress(url, notify), make_opener()
    with os.fdopen(descriptor, "r+b") as file:
        try:
            while not retry(
                lambda: _read_on(opener, url, part, file, progress),
                patience_seconds=PATIENCE_SECONDS,
                is_transient=lambda error: isinstance(error, _BrokenOffError),
            ):
                pass
        except _BrokenOffError as error:
            kept = file.seek(0, os.SEEK_END)
            resumes = f"; {format_bytes(kept)} are kept, and the next attempt resumes there" if kept else ""
            raise FetchError(f"{url}: {error}{resumes}; {BY_HAND}") from None
        file.flush()
        os.fsync(file.fileno())


def _read_on(opener: OpenerDirector, url: str, part: Path, file: BinaryIO, progress: _Progress) -> bool:
    """Read what is missing of a file; returns whether that was all of it.

    Raises:
        _BrokenOffError: The connection failed before much came.
    """
    start = file.seek(0, os.SEEK_END)
    validator = _read_validator(part, url) if start and progress.may_resume else None
    headers = {"User-Agent": "yolofleet", "Accept-Encoding": "identity"}
    if validator is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    check_host(url)
    try:
        with opener.open(Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as answer:
            extent = _extent(answer, url)
            if extent.start not in (0, start):
                raise FetchError(f"{url}: the server sends bytes from {extent.start} on, asked for {start}")
            start = extent.start
            file.seek(start)
            file.truncate()
            _keep_validator(part, url, answer.headers)
            return _copy(answer, file, extent, url, progress)
    except HTTPError as error:
        if error.code != 416 or validator is None:
            raise _status_error(error, url) from None
        file.truncate(0)  # nothing lies behind what is there: the part is of another file
        progress.may_resume = False
        return False
    except ValueError:
        wrong = "the server leads to what is no URL, or HTTPS_PROXY is not the URL of a proxy, http://HOST:PORT"
        raise FetchError(f"{url}: {wrong}") from None
    except (URLError, HTTPException, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, OSError) and reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise reason from None
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise FetchError(
                f"{url}: its certificate is not trusted ({reason.verify_message}); where a proxy of yours signs "
                "certificates, name the file of its authority in SSL_CERT_FILE"
            ) from None
        reached = file.seek(0, os.SEEK_END)
        if reached - max(start, progress.most_bytes) >= LEAST_PROGRESS_BYTES:
            progress.most_bytes = reached
            return False
        raise _BrokenOffError(explain_failure(reason)) from None


class _Extent(NamedTuple):
    start: int
    """First byte that the server sends."""
    total: int | None
    """Bytes of the whole file, where the server says so."""


def _extent(answer: HTTPResponse, url: str) -> _Extent:
    length = answer.headers.get("Content-Length", "")
    start, total = 0, int(length) if length.isdecimal() else None
    if answer.status == 206:
        unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
        first, _, whole = rest.partition("/")
        first = first.partition("-")[0]
        if unit != "bytes" or not first.isdecimal():
            raise FetchError(f"{url}: the server sends a part of the file without saying which")
        start, total = int(first), int(whole) if whole.isdecimal() else None
    if total is not None and total > MOST_BYTES:
        raise FetchError(f"{url}: it has {format_bytes(total)}, more than the {format_bytes(MOST_BYTES)} of a file")
    return _Extent(start, total)


def _copy(answer: HTTPResponse, file: BinaryIO, extent: _Extent, url: str, progress: _Progress) -> bool:
    done = extent.start
    while True:
        progress.show(done, extent.total)
        block = answer.read1(CHUNK_BYTES)
        if not block:
            break
        file.write(block)
        done += len(block)
        if done > MOST_BYTES:
            raise FetchError(f"{url}: it has more than the {format_bytes(MOST_BYTES)} of a file")
    file.flush()
    if extent.total is not None and done < extent.total:
        raise ConnectionResetError("the connection was closed early")
    return True


def _status_error(error: HTTPError, url: str) -> Exception:
    """Return what a status means."""
    if error.code in TRANSIENT_STATUS:
        return _BrokenOffError(f"the server answers {error.code}")
    if error.code in (401, 403):
        return FetchError(f"{url}: the server answers {error.code}: it asks for a login, but none is sent; {BY_HAND}")
    if error.code in (404, 410):
        return FetchError(f"{url}: the server has no such file ({error.code}); look for its address at its publisher")
    return FetchError(f"{url}: the server answers {error.code}; {BY_HAND}")


def _validator_of(part: Path) -> Path:
    return part.with_suffix(".json")


def _keep_validator(part: Path, url: str, headers: HTTPMessage) -> None:
    """Keep what says that a later answer is of the same content: a strong entity tag, else the time of change."""
    tag = headers.get("ETag")
    validator = tag if tag is not None and not tag.startswith("W/") else headers.get("Last-Modified")
    _validator_of(part).write_text(json.dumps({"url": url, "validator": validator}))


def _read_validator(part: Path, url: str) -> str | None:
    try:
        kept = json.loads(_validator_of(part).read_text())
    except (OSError, ValueError):
        return None
    return str(kept["validator"]) if kept["url"] == url and kept["validator"] else None
