"""A stand-in for an object store with limits: a delay for each request, a bandwidth for each connection and for all.

    python benchmarks/slow_s3.py FOLDER LOG [--delay SECONDS] [--connection MB/S] [--total MB/S]

It serves the files of a folder as ``/BUCKET/KEY``, to be read only, in a process of its own that takes little of a
processor (sendfile). It prints its port, and writes the path of every GET to the log.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BLOCK_BYTES = 1 << 18
LATENESS_SECONDS = 0.02
"""So much of the bandwidth that was not used is made up for: sleeping is not exact."""


class Bandwidth:
    """Lets bytes pass at a rate; None is no limit."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, num_bytes: int) -> None:
        """Wait until so many bytes have passed."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - LATENESS_SECONDS) + num_bytes / self._rate
            pause = self._free_at - now
        if pause > 0:
            time.sleep(pause)


@contextmanager
def slow_s3(
    folder: Path, *, delay_seconds: float = 0.0, connection_rate: float | None = None, total_rate: float | None = None
) -> Iterator[Path]:
    """Serve a folder's folders as buckets, point this process's environment to it, and yield the log of its requests.

    Args:
        folder: What to serve.
        delay_seconds: Before the answer to a request for a shard or an index.
        connection_rate: MB/s of one connection.
        total_rate: MB/s of all connections.
    """
    log = folder.parent / "requests.log"
    options = {"--delay": delay_seconds, "--connection": connection_rate, "--total": total_rate}
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    command = [sys.executable, __file__, str(folder), str(log), *given]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
        }
        yield log
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--connection", type=float)
    parser.add_argument("--total", type=float)
    arguments = parser.parse_args()
    total = Bandwidth(arguments.total and arguments.total * 1e6)
    log = arguments.log.open("w", buffering=1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.bandwidth = Bandwidth(arguments.connection and arguments.connection * 1e6)

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            path = self.path.split("?", 1)[0]
            if self.command == "GET":
                log.write(f"{path}\n")
                if path.endswith((".tar", ".index")):
                    time.sleep(arguments.delay)
            try:
                source = (arguments.folder / path.lstrip("/")).open("rb")
            except OSError:
                self.send_response_only(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            with source:
                size = os.fstat(source.fileno()).st_size
                first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
                start, end = int(first or 0), min(size, int(last or size) + 1)
                self.send_response_only(206 if first else 200)
                self.send_header("Content-Length", str(end - start))
                self.send_header("ETag", f'"{size}"')
                if first:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
                self.end_headers()
                while self.command == "GET" and start < end:
                    block = min(BLOCK_BYTES, end - start)
                    total.wait(block)
                    self.bandwidth.wait(block)
                    while block:
                        sent = os.sendfile(self.connection.fileno(), source.fileno(), start, block)
                        start, block = start + sent, block - sent

        do_HEAD = do_GET  # noqa: N815 - a name that the base class calls

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
