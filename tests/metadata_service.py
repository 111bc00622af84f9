"""The metadata service of a machine of AWS (IMDSv2), as far as the notice of a spot machine goes."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta


@contextmanager
def metadata_service(answers: list[tuple[int, str]]) -> Iterator[tuple[str, list[str]]]:
    """Serve these answers for spot/instance-action, the last one for ever; yields the address and what was asked."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            seen.append(f"PUT {self.path} {self.headers['X-aws-ec2-metadata-token-ttl-seconds']}")
            self._answer(200, "the-token")

        def do_GET(self) -> None:
            seen.append(f"GET {self.path}")
            if self.headers["X-aws-ec2-metadata-token"] != "the-token":
                self._answer(401, "")
            else:
                self._answer(*(answers.pop(0) if len(answers) > 1 else answers[0]))

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def notice(seconds: float) -> str:
    """What AWS writes when it takes a machine in so many seconds."""
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})
