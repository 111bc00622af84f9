"""A file server over TLS on this machine, which breaks off, changes and redirects as it is told; and a proxy."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cluster.certificates import ray_tls_settings


@dataclass
class Page:
    """How one path is answered."""

    data: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    tag: str | None = '"1"'
    break_offs: list[int] = field(default_factory=list)
    """After how many bytes the next answers break off."""
    failures: int = 0
    """How many answers are 503 first."""
    chunked: bool = False
    ranges: bool = True
    """Whether a part is sent where one is asked for."""


@dataclass
class FileServer:
    """The server: its pages by path, and the requests that it got."""

    url: str
    authority: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[dict[str, str]] = field(default_factory=list)

    @property
    def ranges(self) -> list[str | None]:
        """The ``Range`` of each request."""
        return [request.get("Range") for request in self.requests]


@contextmanager
def serve_https(folder: Path) -> Iterator[FileServer]:
    """Serve for the length of a with block."""
    settings = ray_tls_settings(folder, ["127.0.0.1"])
    server = FileServer("", settings["RAY_TLS_CA_CERT"])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            self.close_connection = True
            server.requests.append({"path": self.path, **dict(self.headers.items())})
            page = server.pages.get(self.path.partition("?")[0], Page(status=404))
            start, status = 0, page.status
            if page.failures:
                page.failures -= 1
                status = 503
            asked = self.headers.get("Range")
            if asked and page.ranges and status == 200 and self.headers.get("If-Range") == page.tag:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                status = 206 if start < len(page.data) else 416
            self.send_response(status)
            body = page.data[start:] if status in (200, 206) else b""
            headers = {"Content-Length": str(len(body)), "ETag": page.tag, **page.headers}
            if status == 206:
                headers["Content-Range"] = f"bytes {start}-{len(page.data) - 1}/{len(page.data)}"
            if page.chunked:
                headers |= {"Transfer-Encoding": "chunked", "Content-Length": None}
            for name, value in headers.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            end = page.break_offs.pop(0) if page.break_offs and status in (200, 206) else len(body)
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if page.chunked else body[:end])

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings["RAY_TLS_SERVER_CERT"], settings["RAY_TLS_SERVER_KEY"])
    http.socket = context.wrap_socket(http.socket, server_side=True)
    server.url = f"https://localhost:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


@dataclass
class Proxy:
    """A proxy that leads every connection to one port of this machine."""

    url: str
    tunnels: list[str] = field(default_factory=list)
    """The hosts that were asked for."""


@contextmanager
def serve_proxy(port: int, login: str) -> Iterator[Proxy]:
    """Run a proxy that asks for a login for the length of a with block."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(f"127.0.0.1:{listener.getsockname()[1]}")
    expected = base64.b64encode(login.encode())

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def lead(client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (data := client.recv(4096)):
            head += data
        proxy.tunnels.append(head.split()[1].decode() if head else "")
        if expected not in head:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return client.close()
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        target = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=copy, args=(client, target), daemon=True).start()
        copy(target, client)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=lead, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield proxy
    finally:
        listener.close()
