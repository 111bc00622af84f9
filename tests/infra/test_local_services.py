"""S3, MLflow with its database and Ray as plain processes: safe, and enough to train, track and register on."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.exceptions
import psutil
import pytest

from system.pages import ROOT, shell_blocks

SERVICES = ROOT / "infra" / "local" / "services.py"
pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(1800)]
needs_server = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("flask_wtf", "psycopg2")),
    reason="MLflow's login and database need the server extra: pip install 'yolofleet[server]'",
)


def services(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SERVICES), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def household() -> Iterator[Path]:
    """Services that run; the folder is one that PostgreSQL's own user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="yolofleet-services-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        done = services("up", str(folder), "--workers", "1")
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        services("down", str(folder))
        shutil.rmtree(folder)


def environment(folder: Path) -> dict[str, str]:
    """What ``source environment.sh`` gives."""
    lines = [shlex.split(line)[1] for line in (folder / "environment.sh").read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines)


@needs_server
def test_secrets_are_their_owners_only(household: Path) -> None:
    held = [path.read_text() for path in (household / "secrets").iterdir()]
    words = {word for text in held for word in text.replace("'", " ").split() if len(word) == 64}
    assert len(words) >= 5
    for path in (household / "secrets").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name
    for process in psutil.process_iter(["cmdline"]):
        assert not words & {part for text in process.info["cmdline"] or () for part in text.replace(",", " ").split()}
    for path in [*household.glob("logs/*"), *household.glob("*.json")]:
        assert not any(word in path.read_text(errors="replace") for word in words), path.name


@needs_server
def test_servers_listen_on_loopback_and_ask_who_is_there(household: Path) -> None:
    pids = json.loads((household / "processes.json").read_text())
    for name in ("postgres", "storage", "tracking"):
        if name in pids:
            process = psutil.Process(pids[name]["pid"])
            for member in (process, *process.children(recursive=True)):
                listening = [entry for entry in member.net_connections("inet") if entry.status == "LISTEN"]
                assert all(entry.laddr.ip == "127.0.0.1" for entry in listening), name
    clients = environment(household)

    def status(user: str, password: str) -> int:
        url = f"{clients['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/get?experiment_id=0"
        login = b64encode(f"{user}:{password}".encode()).decode()
        request = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status("admin", clients["MLFLOW_TRACKING_PASSWORD"]) == 200
    assert status("admin", "wrong") == 401
    stranger = boto3.client(
        "s3",
        endpoint_url=clients["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="yolofleet",
        aws_secret_access_key="wrong",
    )
    with pytest.raises(botocore.exceptions.ClientError):
        stranger.list_objects_v2(Bucket="runs")
    probe = [sys.executable, "-c", "import ray; ray.init(logging_level='error'); print(len(ray.nodes()))"]
    wrong = os.environ | clients | {"RAY_AUTH_TOKEN": "0" * 64}
    refused = subprocess.run(probe, env=wrong, capture_output=True, text=True, check=False, timeout=300)
    assert refused.returncode != 0 and "uthentic" in refused.stderr


@needs_server
def test_up_again_changes_nothing(household: Path) -> None:
    before = (household / "processes.json").read_text(), environment(household)
    done = services("up", str(household), "--workers", "1")
    assert done.returncode == 0 and "is up" not in done.stderr, done.stderr
    assert ((household / "processes.json").read_text(), environment(household)) == before
    assert services("status", str(household)).returncode == 0


@needs_server
def test_the_page_leads_from_nothing_to_a_job_on_a_cluster() -> None:
    [block] = [
        block
        for sections, block in shell_blocks(ROOT / "docs" / "infrastructure.md")
        if sections[-1] == "One machine, plain processes"
    ]
    clone = Path(tempfile.mkdtemp(prefix="yolofleet-clone-", dir="/tmp"))
    clone.chmod(0o711)
    (clone / ".venv").symlink_to(sys.prefix)
    for name in ("infra", "jobs", "search_spaces"):
        (clone / name).symlink_to(ROOT / name)
    try:
        walk = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(walk, cwd=clone, capture_output=True, text=True, check=False, timeout=1500)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        assert "SUCCEEDED" in done.stdout and "not lost to failures" in done.stdout
        assert "models:/quickstart/1" in done.stdout, "registered by the first job that the cluster was sent"
        assert "gone" not in done.stdout, "all servers ran until the end"
        left = [process for process in psutil.process_iter(["cmdline"]) if str(clone) in str(process.info["cmdline"])]
        assert not left, "down ends everything"
    finally:
        services("down", str(clone / "services"))
        shutil.rmtree(clone)


def test_wrong_input_is_named(tmp_path: Path) -> None:
    assert "start them with 'up'" in services("down", str(tmp_path)).stderr
    assert services("up", str(tmp_path / "new"), "--workers", "0").returncode == 2
    assert not (tmp_path / "new").exists()
    assert services("restart", str(tmp_path)).returncode == 2
