"""S3 and MLflow over TLS: verified against an authority of one's own where its file is named, and refused otherwise."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.certificates import ray_tls_settings

READ = "from yolofleet.storage import open_storage; print(open_storage('s3://b', patience_seconds=0).get('k').decode())"
REACH = (
    "import sys; from yolofleet.tracking.mlflow_store import check_reachable; check_reachable(sys.argv[1]); print('{}')"
)


class Answering(BaseHTTPRequestHandler):
    """Gives every question the same short answer."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Where it answers, and the file of its authority."""
    made = ray_tls_settings(tmp_path_factory.mktemp("server") / "tls", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made["RAY_TLS_SERVER_CERT"], made["RAY_TLS_SERVER_KEY"])
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{listening.server_port}", made["RAY_TLS_CA_CERT"]
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("code", "variable"), [(READ, "AWS_CA_BUNDLE"), (REACH, "MLFLOW_TRACKING_SERVER_CERT_PATH")])
def test_an_authority_of_ones_own_is_named_by_a_variable(
    code: str, variable: str, server: tuple[str, str], tmp_path: Path
) -> None:
    url, authority = server
    known = {
        "AWS_ENDPOINT_URL": url, "AWS_REGION": "x", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }  # fmt: skip

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, url], env=os.environ | known | environment, cwd=tmp_path, capture_output=True,
            text=True, check=False, timeout=300,
        )  # fmt: skip

    trusted, refused = run(**{variable: authority}), run()
    assert trusted.returncode == 0 and trusted.stdout == "{}\n", trusted.stderr
    assert refused.returncode != 0 and refused.stdout == ""
