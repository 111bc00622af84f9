"""What the pages show of torchrun and MLflow, as it stands there but for the ports, and for the size of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.servers import free_port, process
from system.pages import ROOT, shell_lines
from system.shell import Shell, rows

pytestmark = [pytest.mark.system, pytest.mark.slow]


def shown(page: str, beginning: str) -> str:
    """The one line of a page that begins so."""
    [line] = [line.text for line in shell_lines(ROOT / "docs" / page) if line.text.startswith(beginning)]
    return line


def bash(line: str, household: Shell) -> subprocess.CompletedProcess[str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=household.folder,
        env=os.environ | {"PATH": programs, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def port() -> Iterator[str]:
    yield str(free_port())


def test_torchrun_trains_the_job(household: Shell) -> None:
    line = shown("cluster-training.md", "torchrun")
    done = bash(line.replace("--nproc-per-node 8", "--nproc-per-node 2 --standalone"), household)
    assert done.returncode == 0, done.stderr[-4000:]
    events = [row["kind"] for row in rows(household.folder / "runs" / "my-run" / "events.jsonl")]
    assert events[-1] == "end", events


def test_mlflow_shows_the_runs(household: Shell, port: str) -> None:
    line = shown("tracking.md", "mlflow server").replace("5000", port)
    log = household.folder / "server.log"
    with process(["bash", "-c", line], log, f"http://127.0.0.1:{port}/health"):
        question = f"curl -s http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=yolofleet"
        assert json.loads(bash(question, household).stdout)["experiment"]["name"] == "yolofleet"


def test_mlflow_serves_a_version_and_curl_asks_it(household: Shell, port: str) -> None:
    serve = shown("registry.md", "MLFLOW_TRACKING_URI=").replace("8080", port).replace("@champion", "@candidate")
    with process(["bash", "-c", serve], household.folder / "serve.log", f"http://127.0.0.1:{port}/ping"):
        asked = bash(shown("registry.md", "curl").replace("8080", port), household)
        [found] = json.loads(asked.stdout)["predictions"]
    assert all({"category_id", "bbox", "score"} <= {*record} for record in found)
