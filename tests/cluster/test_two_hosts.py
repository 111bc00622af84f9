"""A job over a real network: sent from one host, trained on two others, with its storage and MLflow on a fourth.

Hosts are network namespaces, so cables can be cut: packets are lost, and no one learns of it.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.network import Host, Network, unavailable
from system.shell import COMMAND, wait_for, write_job

WHY_NOT = unavailable()
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]
PATIENCE_SECONDS = 900.0
CUT_SECONDS = 30.0
BESIDE = Path(sys.executable).parent
READ_EVENTS = (
    "import json, sys\n"
    "from yolofleet.tracking.run_directory import RunDirectory\n"
    "run = RunDirectory.open(sys.argv[1], sys.argv[2])\n"
    "print(json.dumps({'events': run.events(), 'steps': [row['step'] for row in run.metrics() if 'loss' in row]}))\n"
)


@dataclass
class Lab:
    """A head and a worker, their services, and somebody's laptop."""

    folder: Path
    network: Network
    environment: dict[str, str]

    def __post_init__(self) -> None:
        self.head, self.worker, self.services, self.laptop = (
            self.network.add(name) for name in ("head", "worker", "services", "laptop")
        )
        self.environment |= {
            "AWS_ENDPOINT_URL": f"http://{self.services.address}:9000",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BESIDE}{os.pathsep}{os.environ['PATH']}",
        }

    @property
    def dashboard(self) -> str:
        """Where the head takes jobs."""
        return f"http://{self.head.address}:8265"

    def start(self, host: Host, *words: str, log: str) -> subprocess.Popen[bytes]:
        """Start something on a host, with a disk of its own at ``disk``."""
        disk, place = self.folder / f"disk-{host.name}", self.folder / "disk"
        for path in (disk, place):
            path.mkdir(exist_ok=True)
        command = host.command(*words, disk=disk, place=place)
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=output, stderr=output)

    def run(self, host: Host, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run something on a host to its end."""
        return subprocess.run(
            host.command(*words),
            cwd=self.folder,
            env=self.environment | changes,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def succeed(self, host: Host, *words: str) -> str:
        """Run something that must exit with 0; returns its standard output."""
        done = self.run(host, *words)
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def record(self, name: str) -> dict[str, Any]:
        """Return a run's events and steps, as the laptop reads them from the storage."""
        found: dict[str, Any] = json.loads(
            self.succeed(self.laptop, sys.executable, "-c", READ_EVENTS, "s3://bucket/runs", name)
        )
        return found

    def answers(self, url: str) -> Callable[[], bool]:
        """Return what tells whether somebody answers at an address, seen from the laptop."""
        code = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=5)"
        return lambda: self.run(self.laptop, sys.executable, "-c", code).returncode == 0

    def stand_up(self) -> None:
        """Start everything."""
        home = self.services
        self.start(home, str(BESIDE / "moto_server"), "-H", home.address, "-p", "9000", log="s3.log")
        store = [f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db", f"--artifacts-destination={self.folder}/a"]
        mlflow = [sys.executable, "-m", "mlflow", "server", "--host", home.address, "--port", "5000", "--workers", "1"]
        self.start(home, *mlflow, *store, log="mlflow.log")
        ray = [str(BESIDE / "ray"), "start", "--block", "--object-store-memory=80000000"]
        self.start(
            self.head, *ray, "--head", "--num-cpus=1", f"--node-ip-address={self.head.address}", "--port=6379",
            f"--dashboard-host={self.head.address}", f"--temp-dir={self.folder}/disk/ray", log="head.log",
        )  # fmt: skip
        wait_for(lambda: "Ray runtime started" in (self.folder / "head.log").read_text(), 300, "the head")
        join = [*ray, "--num-cpus=1", f"--node-ip-address={self.worker.address}", f"--address={self.head.address}:6379"]
        # As a service manager does: a node that the head has given up ends, and is started again.
        again = 'while sleep 1; do "$@"; done'
        self.start(self.worker, "sh", "-c", again, "sh", *join, log="worker.log")
        wait_for(lambda: "Ray runtime started" in (self.folder / "worker.log").read_text(), 300, "the worker")
        wait_for(self.answers(f"http://{home.address}:5000/health"), 300, "MLflow")
        code = "import boto3; boto3.client('s3').create_bucket(Bucket='bucket')"
        self.succeed(self.laptop, sys.executable, "-c", code)


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Everything, up."""
    folder = Path(f"/tmp/yf-{secrets.token_hex(3)}")  # Ray's sockets need short paths
    folder.mkdir()
    network = Network()
    try:
        made = Lab(folder, network, dict(os.environ))
        made.stand_up()
        yield made
    finally:
        network.close()
        subprocess.run(["rm", "-rf", str(folder)], check=False)


def far_job(lab: Lab, num_steps: int) -> Path:
    """Put the data on the storage and write a job for two workers on two hosts."""
    lab.succeed(lab.laptop, *COMMAND, "data", "synth", "images", "--images", "80", "--seed", "3", "--image-size", "128")
    for part in ("train", "val"):
        annotations = f"images/instances_{part}.json"
        lab.succeed(lab.laptop, *COMMAND, "data", "shard", annotations, "images/images", f"s3://bucket/{part}")
    return write_job(
        lab.folder,
        lab.folder,
        name="far",
        data__train="s3://bucket/train",
        data__val="s3://bucket/val",
        data__cache={"path": str(lab.folder / "disk/cache")},
        storage="s3://bucket/runs",
        epochs=num_steps * 8 / 64,
        evaluation={"every_epochs": 1000.0},
        checkpoint={"every_steps": 20, "keep": 2},
        cluster={"workers": 2, "hang_timeout_seconds": 20.0, "max_failures": 10},
        tracking={"uri": f"http://{lab.services.address}:5000"},
    )


def test_a_job_outlasts_cut_cables_and_its_follower_misses_nothing(lab: Lab) -> None:
    num_steps = 600
    job = far_job(lab, num_steps)
    submit = [*COMMAND, "submit", str(job), "--address", lab.dashboard]
    wrong = lab.run(lab.laptop, *submit, RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode == 2 and "set RAY_AUTH_TOKEN" in wrong.stderr, wrong.stderr

    with (lab.folder / "shown.txt").open("w") as out, (lab.folder / "warnings.txt").open("w") as warnings:
        follower = subprocess.Popen(
            lab.laptop.command(*submit, "--follow"), cwd=lab.folder, env=lab.environment, stdout=out, stderr=warnings
        )
        shown = lambda: (lab.folder / "shown.txt").read_text()  # noqa: E731 - read again each time
        wait_for(lambda: "step 1/" in shown() or follower.poll() is not None, PATIENCE_SECONDS, "the first steps")
        assert follower.poll() is None, (lab.folder / "warnings.txt").read_text() + shown()

        lab.worker.cut()
        time.sleep(CUT_SECONDS)
        lab.worker.mend()
        wait_for(
            lambda: "stalled" in {event["kind"] for event in lab.record("far")["events"]}, 120, "a word of the cut"
        )

        lab.laptop.cut()
        time.sleep(CUT_SECONDS)
        lab.laptop.mend()
        assert follower.wait(timeout=PATIENCE_SECONDS) == 0, (lab.folder / "warnings.txt").read_text() + shown()

    printed = lab.succeed(lab.laptop, *COMMAND, "jobs", "logs", "far", "--address", lab.dashboard)
    assert shown().splitlines() == printed.splitlines(), "no line is lost, none is there twice"
    record = lab.record("far")
    assert record["steps"] == list(range(1, num_steps + 1))
    kinds = {event["kind"] for event in record["events"]}
    assert "stalled" in kinds and "end" in kinds
