"""What the soak stands on: MLflow, the run's job, and what is left of it all at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from cluster.local_cluster import LocalCluster


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_mlflow(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start an MLflow server and return it with its address."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    artifacts = ["--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # ten processes that nothing here uses
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *store, *artifacts], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    end = time.monotonic() + 180
    while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
        if time.monotonic() > end:
            raise RuntimeError((folder / "mlflow.log").read_text())
        time.sleep(0.5)
    return server, f"http://127.0.0.1:{port}"


def yolofleet(*arguments: str, folder: Path) -> None:
    """Run a command that must succeed."""
    subprocess.run([sys.executable, "-m", "yolofleet", *arguments], cwd=folder, check=True, stdout=sys.stderr)


def write_job(folder: Path, tracking_uri: str, num_steps: int) -> Path:
    """Write the job of the soak."""
    job = {
        "name": "soak",
        "model": {"name": "yolov7-tiny", "transition_width": 0.25, "hidden_width": 0.25},
        "data": {
            "train": "s3://bucket/train",
            "val": "s3://bucket/val",
            "image_size": 128,
            "cache": {"path": str(folder / "cache")},
        },
        "recipe": "tiny",
        "hyperparameters": {"warmup_min_steps": 4, "warmup_epochs": 0.5, "ema_ramp_steps": 10},
        "epochs": num_steps * 32 / 64,
        "global_batch_size": 32,
        "micro_batch_size": 4,
        "log_every_steps": 1,
        "record_samples": True,
        "storage": "s3://bucket/runs",
        "checkpoint": {"every_steps": 20, "keep": 3},
        "evaluation": {"every_epochs": 1000.0},
        "cluster": {
            "workers": [1, 2],
            "max_failures": 10,
            "hang_timeout_seconds": 30.0,
            "resize_interval_seconds": 10.0,
        },
        "tracking": {"uri": tracking_uri, "when_away": "spool"},
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def placement_groups(cluster: LocalCluster) -> int:
    """Return how many placement groups the cluster still holds."""
    code = (
        "import ray, sys\n"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error')\n"
        "table = ray.util.placement_group_table().values()\n"
        "print(sum(group['state'] != 'REMOVED' for group in table))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cluster.address],
        env=os.environ | cluster.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    return int(done.stdout)


def temporary_names() -> set[str]:
    """Return what lies in the system's temporary folder under our names."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("yolofleet-*")}
