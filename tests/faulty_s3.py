"""An S3 server for tests, and a proxy in front of it that breaks what passes on the socket, as asked."""

from __future__ import annotations

import http.client
import logging
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple

Fault = Literal["500", "503", "403", "reset", "truncate", "stall", "wrong", "html"]
STALL_SECONDS = 3.0
GATE_SECONDS = 120.0
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_PAGE = b"<html><body>Please sign in to the network.</body></html>"


class Request(NamedTuple):
    """A request that came to a proxy.

    Attributes:
        at: When, by `time.monotonic`.
        verb: Its method; LIST for a listing.
        path: Its path, without what follows a question mark.
        range: Its Range header.
    """

    at: float
    verb: str
    path: str
    range: str | None


class FaultyProxy:
    """Passes requests on to a server; requests whose path ends as asked meet the planned faults, one after the other.

    Attributes:
        plan: Faults still to come.
        for_ever: A fault that every further matching request meets, once the plan is empty.
        ending: What the path of a request must end with to meet a fault.
        num_matched: Matching requests so far.
        requests: All requests so far.
        ignores_conditions: Whether conditional writes overwrite all the same, as some servers do.
        gates: Requests whose path ends with the key wait until the event is set.
    """

    def __init__(self, upstream_port: int) -> None:
        self.plan: list[Fault] = []
        self.for_ever: Fault | None = None
        self.ending = ".tar"
        self.num_matched = 0
        self.requests: list[Request] = []
        self.ignores_conditions = False
        self.gates: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                """Keep quiet."""

            def pass_on(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                path = self.path.split("?", 1)[0]
                verb = "LIST" if "list-type=" in self.path else self.command
                proxy.requests.append(Request(time.monotonic(), verb, path, self.headers.get("Range")))
                for ending, gate in [*proxy.gates.items()]:
                    if path.endswith(ending):
                        gate.wait(GATE_SECONDS)
                fault = proxy.next_fault(self.path)
                if fault == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.shutdown(socket.SHUT_RD)
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault in ("500", "503", "403", "html"):
                    status = 200 if fault == "html" else int(fault)
                    self.answer(status, {}, {"503": _SLOW_DOWN, "403": _DENIED, "html": _PAGE}.get(fault, b""))
                    return
                if fault == "stall":
                    time.sleep(STALL_SECONDS)
                    self.close_connection = True
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=30)
                dropped = ("if-none-match",) if proxy.ignores_conditions else ()
                headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
                upstream.request(self.command, self.path, body=body, headers=headers)
                reply = upstream.getresponse()
                data = reply.read()
                if fault == "wrong":
                    data = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
                headers = {name: value for name, value in reply.getheaders()}
                self.answer(reply.status, headers, data, cut=fault == "truncate")
                upstream.close()

            def answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
                dropped = ("transfer-encoding", "connection", "content-length")
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in dropped:
                        self.send_header(name, value)
                shown = next((value for name, value in headers.items() if name.lower() == "content-length"), None)
                length = int(shown) if self.command == "HEAD" and shown else len(data)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                self.close_connection = self.close_connection or cut

            do_GET = do_PUT = do_HEAD = do_POST = do_PATCH = do_DELETE = pass_on  # noqa: N815 - names that the base class calls

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def next_fault(self, path: str) -> Fault | None:
        """Return what the next request for a path meets."""
        if not path.split("?", 1)[0].endswith(self.ending):
            return None
        with self._lock:
            self.num_matched += 1
            return self.plan.pop(0) if self.plan else self.for_ever

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def faulty_s3() -> Iterator[FaultyProxy]:
    """Run an S3 server in memory behind a proxy; it accepts any credentials."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    # All such servers of a process share one memory: begin with an empty one, whoever had one before.
    urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/reset", data=b"", timeout=30).close()
    proxy = FaultyProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
        server.stop()
