"""The page of a run or a search while it goes: a server on this machine's loopback that renders it when asked.

It reads the directory, local or s3://, and writes nothing. It answers GET alone, at two kinds of addresses: ``/`` and,
of a search, ``/trials/NAME/``; and only where the browser was sent to this machine by its own name, so that no other
site can read it. An unchanged page is answered without its content.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.text import one_line
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.report import render_search
from yolofleet.search.results import load_results
from yolofleet.storage import Storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.run_page import render_run
from yolofleet.tracking.run_record import read_run

LOOPBACK = "127.0.0.1"
TRIAL = re.compile(r"/trials/([A-Za-z0-9][A-Za-z0-9._-]*)/?")
WRITTEN = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 10.0
"""How old a page may be before the directory is read again."""
MOST_SHARE = 0.1
"""Of the time may go into making pages: one of a long run is made less often."""


class LivePages:
    """Renders the pages of one directory, each at most once a while however many ask for it.

    Args:
        storage: The directory of a run or a search.
        clock: Seconds since any moment.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock = clock
        self._most_seconds = REMOTE_SECONDS if storage.local_path("job.yaml") is None else LOCAL_SECONDS
        self._lock = threading.Lock()
        self._pages: dict[str, tuple[float, bytes]] = {}

    def page(self, path: str) -> bytes | None:
        """Return the page of an address; None where there is none.

        Raises:
            UserError: The directory holds neither a run nor a search, or a file of it is damaged.
            StorageError: The storage does not answer.
        """
        with self._lock:
            kept = self._pages.get(path)
            began = self._clock()
            if kept is not None and began < kept[0]:
                return kept[1]
            text = self._render(path)
            if text is None:
                return None
            ended = self._clock()
            due = ended + max(self._most_seconds, (ended - began) / MOST_SHARE)
            self._pages[path] = (due, text.encode())
            return self._pages[path][1]

    def _render(self, path: str) -> str | None:
        search = SearchDirectory(self._storage)
        if search.exists():
            if (found := TRIAL.fullmatch(path)) is not None:
                trial = search.trial(found[1])
                return render_run(read_run(trial), live=True, links={"search": "/"}) if trial.exists() else None
            results = load_results(search)
            pages = {name: f"/trials/{name}/" for entry in results.entries for name in entry.runs}
            return render_search(results, pages, live=True) if path == "/" else None
        run = RunDirectory(self._storage)
        if not run.exists():
            raise UserError(f"{run.url}: holds neither a run (job.yaml) nor a search (search.yaml)")
        return render_run(read_run(run), live=True, links={}) if path == "/" else None


def page_server(storage: Storage, port: int) -> ThreadingHTTPServer:
    """Return a server of the pages of a directory, bound to a port of loopback; 0 takes a free one.

    Raises:
        UserError: There is neither a run nor a search, or the port is taken.
    """
    pages = LivePages(storage)
    pages.page("/")

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # a browser that no longer waits for the answer
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "yolofleet", ""

        def do_GET(self) -> None:
            names = {f"{name}:{self.connection.getsockname()[1]}" for name in (LOOPBACK, "localhost")}
            if self.headers.get("Host") not in names:
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            try:
                content = pages.page(self.path.partition("?")[0])
            except (UserError, WorkError) as error:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=one_line(error))
                return
            if content is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            tag = f'"{hashlib.sha256(WRITTEN.sub(b"", content, count=1)).hexdigest()[:32]}"'
            is_known = self.headers.get("If-None-Match") == tag
            self.send_response(HTTPStatus.NOT_MODIFIED if is_known else HTTPStatus.OK)
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if not is_known:
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not is_known:
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Print nothing for each request."""

    try:
        return Server((LOOPBACK, port), Handler)
    except OSError as error:
        raise UserError(f"--port {port}: cannot be opened on {LOOPBACK} ({error.strerror}); leave it out") from error


def serve_page(storage: Storage, port: int, say: Callable[[str], None]) -> None:
    """Serve the pages of a directory until Ctrl-C.

    Args:
        storage: The directory of a run or a search.
        port: On loopback; 0 takes a free one.
        say: Takes a line with the address, and one at the end.

    Raises:
        UserError: There is neither a run nor a search, or the port is taken.
    """
    with page_server(storage, port) as server:
        say(f"http://{LOOPBACK}:{server.server_port}/  (Ctrl-C ends it)")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("ended")
