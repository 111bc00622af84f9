"""Running whole commands in processes of their own, as a user does, and reading what they left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

COMMAND = [sys.executable, "-m", "yolofleet"]


@dataclass
class Shell:
    """Runs yolofleet in a folder.

    Attributes:
        folder: Where commands run.
        environment: What they see besides the test's own environment.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def _environment(self) -> dict[str, str]:
        return os.environ | {"OMP_NUM_THREADS": "1"} | self.environment

    def run(self, *arguments: str, timeout_seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def succeed(self, *arguments: str, timeout_seconds: float = 300) -> str:
        """Run a command that must exit with 0; returns its standard output."""
        done = self.run(*arguments, timeout_seconds=timeout_seconds)
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, as a shell in front of a user does: Ctrl-C interrupts it.

        Who runs the tests in the background may have them, and what they start, ignore it.
        """
        with (self.folder / "output.log").open("a") as log:
            return subprocess.Popen(
                ["env", "--default-signal=INT", *COMMAND, *arguments],
                cwd=self.folder,
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def output(self) -> str:
        """What started commands have printed."""
        path = self.folder / "output.log"
        return path.read_text() if path.exists() else ""


def torchrun(num_processes: int, job: Path, *program: str) -> subprocess.CompletedProcess[str]:
    """Train a job in processes that torchrun starts on this machine, or run another program in them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return subprocess.run(
        [*command, *(program or ("-m", "yolofleet.training", str(job)))],
        cwd=job.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_job(folder: Path, drawn: Path, **changes: Any) -> Path:
    """Write a small job over the drawn data; dotted keys change nested fields."""
    job: dict[str, Any] = {
        "name": "small",
        "model": {"name": "yolov7-tiny", "transition_width": 0.25, "hidden_width": 0.25},
        "data": {"train": str(drawn / "shards/train"), "val": str(drawn / "shards/val"), "image_size": 64},
        "recipe": "tiny",
        "hyperparameters": {"warmup_min_steps": 4, "warmup_epochs": 0.5, "ema_ramp_steps": 10},
        "epochs": 2,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "log_every_steps": 1,
        "record_samples": True,
        "storage": "runs",
        "checkpoint": {"every_steps": 4, "keep": 2},
        "cluster": {"workers": 2},
    }
    for path, value in changes.items():
        place = job
        *parents, last = path.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def wait_for(condition: Callable[[], Any], timeout_seconds: float = 120, what: str = "the condition") -> Any:
    """Return the condition's first true value."""
    end = time.monotonic() + timeout_seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"{what} did not come within {timeout_seconds:g} s")


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON lines file; none while it is missing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def sample_rows(run: Path) -> list[dict[str, Any]]:
    """All rows of a run's sample logs, worker by worker."""
    return [row for log in sorted((run / "samples").glob("rank-*.jsonl")) for row in rows(log)]


def digests(run: Path) -> dict[tuple[int, int], str]:
    """What the network saw, by step and micro-batch; each is there once."""
    found: dict[tuple[int, int], str] = {}
    for row in sample_rows(run):
        if "digest" in row:
            position = (row["step"], row["micro_batch"])
            assert position not in found, f"{position} was seen twice"
            found[position] = row["digest"]
    return found


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a process and everything that it started, as a machine that loses its power does."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        if child.is_running():
            child.kill()
    process.wait()
