"""Servers in processes of their own, for the length of a with block."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_TIMEOUT_SECONDS = 180.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], log: Path, health_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own until the block ends."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where MLflow looks for uvicorn
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path}
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=log.parent, env=environment, start_new_session=True
        )
    try:
        give_up = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            try:
                with urllib.request.urlopen(health_url, timeout=5):
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < give_up, log.read_text()[-3000:]
                time.sleep(0.3)
        yield server
    finally:
        end_group(server)


def end_group(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(timeout=30)


@contextlib.contextmanager
def mlflow_server(
    folder: Path, port: int, *, backend: str | None = None, artifacts: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run an MLflow server over a sqlite database and a folder, or what is named instead."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", backend or f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", artifacts or str(folder / "kept")]
    with process(command, folder / "server.log", f"http://127.0.0.1:{port}/health") as server:
        yield server
