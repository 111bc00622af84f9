"""The Jobs API of a cluster that runs nothing: it takes packages and jobs as Ray's does, and keeps what it was sent."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray


@dataclass
class FakeJobs:
    """What was sent.

    Attributes:
        address: Where the API answers.
        requests: The jobs, as they were asked for.
        packages: The uploaded archives.
        output: What each job has printed, by its id.
    """

    address: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    packages: dict[str, bytes] = field(default_factory=dict)
    output: dict[str, str] = field(default_factory=dict)

    def texts(self) -> Iterator[str]:
        """Everything that was sent, archives unpacked."""
        yield json.dumps(self.requests)
        for name, data in self.packages.items():
            yield name
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member in archive.namelist():
                    yield member
                    yield archive.read(member).decode(errors="replace")

    def details(self) -> list[dict[str, Any]]:
        """The jobs, as the cluster lists them."""
        return [
            {
                "type": "SUBMISSION",
                "submission_id": request["submission_id"],
                "entrypoint": request["entrypoint"],
                "status": "RUNNING",
                "metadata": request["metadata"],
                "runtime_env": request["runtime_env"],
                "start_time": int(time.time() * 1000),
            }
            for request in self.requests
        ]


@contextmanager
def fake_jobs() -> Iterator[FakeJobs]:
    """Serve the API on a port of its own for the length of a with block."""
    jobs = FakeJobs()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, document: Any, status: int = 200) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_GET(self) -> None:
            if self.path == "/api/version":
                self._answer({"version": "4", "ray_version": ray.__version__, "ray_commit": ray.__commit__})
            elif self.path.startswith("/api/packages/"):
                name = self.path.rpartition("/")[2]
                self._answer({}, 200 if name in jobs.packages else 404)
            elif self.path.rstrip("/") == "/api/jobs":
                self._answer(jobs.details())
            elif self.path.endswith("/logs") and self.path.split("/")[-2] in jobs.output:
                self._answer({"logs": jobs.output[self.path.split("/")[-2]]})
            else:
                self._answer({}, 404)

        def do_PUT(self) -> None:
            jobs.packages[self.path.rpartition("/")[2]] = self._body()
            self._answer({})

        def do_POST(self) -> None:
            jobs.requests.append(json.loads(self._body()))
            name = jobs.requests[-1]["submission_id"]
            self._answer({"submission_id": name, "job_id": name})

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    jobs.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield jobs
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
