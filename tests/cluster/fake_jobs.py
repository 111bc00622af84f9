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
from urllib.parse import parse_qsl

import ray


@dataclass
class FakeJobs:
    """What was sent.

    Attributes:
        address: Where the API answers.
        requests: The jobs, as they were asked for.
        packages: The uploaded archives.
        ended: Status and exit code of the jobs that have ended, by id.
        output: What each job has printed, by its id.
        worker_output: What workers have printed, by node, process and stream; no other worker is known.
    """

    address: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    packages: dict[str, bytes] = field(default_factory=dict)
    ended: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    output: dict[str, str] = field(default_factory=dict)
    worker_output: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def end(self, name: str, status: str, exit_code: int | None) -> None:
        """End the newest job of a name."""
        newest = [request for request in self.requests if request["metadata"]["name"] == name][-1]
        self.ended[newest["submission_id"]] = (status, exit_code)

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
                "status": status,
                "driver_exit_code": exit_code,
                "metadata": request["metadata"],
                "runtime_env": request["runtime_env"],
                "start_time": int(time.time() * 1000) + number,
            }
            for number, request in enumerate(self.requests)
            for status, exit_code in [self.ended.get(request["submission_id"], ("RUNNING", None))]
        ]


@contextmanager
def fake_jobs() -> Iterator[FakeJobs]:
    """Serve the API on a port of its own for the length of a with block."""
    jobs = FakeJobs()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, document: Any, status: int = 200) -> None:
            self._send(json.dumps(document).encode(), "application/json", status)

        def _send(self, data: bytes, kind: str, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
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
            elif self.path.startswith("/api/jobs/") and self.path.endswith("/logs"):
                self._answer({"logs": jobs.output.get(self.path.split("/")[-2], "")})
            elif self.path.startswith("/api/jobs/"):
                name = self.path.rpartition("/")[2]
                self._answer(next(entry for entry in jobs.details() if entry["submission_id"] == name))
            elif self.path.startswith("/api/v0/logs/file?"):
                query = dict(parse_qsl(self.path.partition("?")[2]))
                text = jobs.worker_output.get((query["node_id"], query["pid"], query["suffix"]))
                known = {key[:2] for key in jobs.worker_output}
                found = (query["node_id"], query["pid"]) in known
                self._send((text or "").encode(), "text/plain", 200 if found else 404)
            else:
                self._answer({}, 404)

        def do_PUT(self) -> None:
            jobs.packages[self.path.rpartition("/")[2]] = self._body()
            self._answer({})

        def do_POST(self) -> None:
            jobs.requests.append(json.loads(self._body()))
            name = jobs.requests[-1]["submission_id"]
            self._answer({"submission_id": name, "job_id": name})

        def do_DELETE(self) -> None:
            name = self.path.rpartition("/")[2]
            jobs.requests = [request for request in jobs.requests if request["submission_id"] != name]
            self._answer({"deleted": True})

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
