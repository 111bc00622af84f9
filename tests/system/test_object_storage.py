"""The whole path with data, run directory and artifacts in object storage."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.shell import Shell, wait_for, write_job

pytestmark = pytest.mark.system
KEYS = ("test-key", "test-secret")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server on this machine that checks signatures; yields the environment that reaches it."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rclone = Path(sys.executable).parent / "rclone"
    serve = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", ",".join(KEYS)]
    cache = ["--vfs-cache-mode", "writes", "--cache-dir", str(folder / "cache")]
    server = subprocess.Popen([*serve, *cache, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 30, "the S3 server")
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": KEYS[0],
            "AWS_SECRET_ACCESS_KEY": KEYS[1],
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.kill()
        server.wait()


def test_shards_and_runs_live_on_s3(shell: Shell, drawn: Path, s3: dict[str, str]) -> None:
    shell.environment = s3
    for part in ("train", "val"):
        annotations = str(drawn / f"images/instances_{part}.json")
        shell.succeed("data", "shard", annotations, str(drawn / "images/images"), f"s3://bucket/{part}")
    job = write_job(
        shell.folder,
        drawn,
        data={"train": "s3://bucket/train", "val": "s3://bucket/val", "image_size": 64, "cache": {"path": "cache"}},
        storage="s3://bucket/runs",
        tracking={"uri": "sqlite:///mlflow.db", "register_as": "small"},
    )
    done = shell.succeed("train", str(job))
    assert "models:/small/1" in done
    assert "finished already" in shell.succeed("train", str(job))
    figures = shell.succeed("evaluate", "s3://bucket/runs/small", "s3://bucket/val", "--json")
    assert '"AP50"' in figures
    logs = (shell.folder / "output.log").read_text() if (shell.folder / "output.log").exists() else ""
    assert KEYS[1] not in done + figures + logs


@pytest.mark.slow
def test_a_release_in_half_precision_with_its_network_as_onnx_predicts_with_it(
    shell: Shell, drawn: Path, s3: dict[str, str]
) -> None:
    shell.environment = s3
    job = write_job(
        shell.folder,
        drawn,
        storage="s3://bucket/with-onnx",
        tracking={"uri": "sqlite:///mlflow.db", "register_as": "quick"},
        release_onnx=True,
        release_precision="fp16",
        cluster__workers=1,
        epochs=0.5,
    )
    shell.succeed("train", str(job), "--launcher", "process")
    verified = shell.succeed("registry", "verify", "models:/quick/1", "--tracking-uri", "sqlite:///mlflow.db")
    for claim in ("ONNX Runtime, model.onnx", "AP, model.onnx", "AP before rounding"):
        assert re.search(rf"ok +{re.escape(claim)}", verified), verified
    done = shell.run("evaluate", "s3://bucket/with-onnx/small", str(drawn / "shards/val"), "--json", "--device", "cpu")
    assert done.returncode == 0 and "torch predicts" not in done.stderr, done.stderr


def test_a_wrong_secret_is_refused_at_once(shell: Shell, drawn: Path, s3: dict[str, str]) -> None:
    shell.environment = s3 | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    job = write_job(shell.folder, drawn, storage="s3://bucket/other")
    done = shell.run("train", str(job), timeout_seconds=30)
    assert done.returncode == 2
    assert "refused by http://127.0.0.1" in done.stderr
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_bucket_is_named(shell: Shell, drawn: Path, s3: dict[str, str]) -> None:
    shell.environment = s3
    job = write_job(shell.folder, drawn, data__train="s3://no-such-bucket/train")
    done = shell.run("train", str(job), timeout_seconds=60)
    assert done.returncode == 2
    assert "no-such-bucket" in done.stderr
