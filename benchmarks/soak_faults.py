"""What the soak breaks, and how; ``soak.py`` says when."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.local_cluster import LocalCluster, Node
from faulty_s3 import FaultyProxy
from yolofleet.tracking.run_directory import RunDirectory

PARTITION_SECONDS = 15.0
S3_SECONDS = 10.0
MLFLOW_SECONDS = 30.0
SETTLED_SECONDS = 60.0
"""By this age a command has its connections to Ray and MLflow."""


@dataclass
class Soak:
    """The run, what it stands on, and what is done to it."""

    folder: Path
    cluster: LocalCluster
    proxy: FaultyProxy
    mlflow: subprocess.Popen[bytes]
    chance: random.Random
    done: list[tuple[float, str]] = field(default_factory=list)
    num_nodes: int = 0
    handles: list[int] = field(default_factory=list)
    _counted: int | None = None

    @property
    def run(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory.open("s3://bucket/runs", "soak")

    def nodes(self) -> list[Node]:
        """The nodes that are there, without the head."""
        return [node for node in self.cluster.nodes[1:] if node.process.poll() is None]

    def add_node(self) -> None:
        """Add a node with room for one worker."""
        self.num_nodes += 1
        self.cluster.add_node(f"node-{self.num_nodes}")

    def count_handles(self, driver: subprocess.Popen[bytes]) -> None:
        """Note how many files and connections the command holds; a command that was started anew begins anew."""
        if driver.pid != self._counted:
            self._counted, self.handles = driver.pid, []
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(driver.pid)
            if time.time() - process.create_time() > SETTLED_SECONDS:
                self.handles.append(process.num_fds())

    def worker(self) -> psutil.Process | None:
        """Return any training worker."""
        found = [process for node in self.nodes() for process in node.workers()]
        return self.chance.choice(found) if found else None

    def kill_worker(self) -> None:
        """Kill a training worker."""
        if (process := self.worker()) is not None:
            process.kill()

    def stop_worker(self) -> None:
        """Stop a training worker; nobody lets it go on."""
        if (process := self.worker()) is not None:
            process.send_signal(signal.SIGSTOP)

    def kill_raylet(self) -> None:
        """Kill the Ray process of a node, and give the cluster another node."""
        self.chance.choice(self.nodes()).raylet().kill()
        self.add_node()

    def remove_node(self) -> None:
        """Let a node lose its power, and give the cluster another one."""
        self.chance.choice(self.nodes()).kill()
        self.add_node()

    def partition(self) -> None:
        """Let a node answer nothing for a while."""
        family = self.chance.choice(self.nodes()).family()
        for process in family:
            process.send_signal(signal.SIGSTOP)
        time.sleep(PARTITION_SECONDS)
        for process in family:
            if process.is_running():
                process.send_signal(signal.SIGCONT)

    def s3_503(self) -> None:
        """Let S3 answer 503 to everything for a while."""
        self.proxy.ending, self.proxy.for_ever = "", "503"
        time.sleep(S3_SECONDS)
        self.proxy.for_ever = None

    def mlflow_down(self) -> None:
        """Let MLflow answer nothing for a while."""
        family = [psutil.Process(self.mlflow.pid), *psutil.Process(self.mlflow.pid).children(recursive=True)]
        for process in family:
            process.send_signal(signal.SIGSTOP)
        time.sleep(MLFLOW_SECONDS)
        for process in family:
            process.send_signal(signal.SIGCONT)

    def corrupt_checkpoint(self) -> None:
        """Kill a worker, and damage the newest checkpoint before the next ones read it."""
        self.kill_worker()
        storage = self.run.storage
        steps = [int(entry.key.split("-")[1].split("/")[0]) for entry in storage.list("checkpoints/step-")]
        if steps:
            key = f"checkpoints/step-{max(steps)}/weights.safetensors"
            data = bytearray(storage.get(key))
            data[len(data) // 2] ^= 255
            storage.put(key, bytes(data))

    def break_something(self, kinds: list[str]) -> None:
        """Do the next of the kinds and note it."""
        kind = kinds.pop()
        self.done.append((time.time(), kind))
        print(f"{time.strftime('%H:%M:%S')} {kind}", file=sys.stderr, flush=True)
        actions: dict[str, Callable[[], None]] = {name: getattr(self, name) for name in KINDS}
        try:
            actions[kind]()
        except (StopIteration, IndexError, psutil.NoSuchProcess) as error:
            print(f"  there was nothing to break ({error!r})", file=sys.stderr)


KINDS = (
    "kill_worker",
    "kill_raylet",
    "remove_node",
    "add_node",
    "stop_worker",
    "partition",
    "s3_503",
    "mlflow_down",
    "corrupt_checkpoint",
)


def shuffled_kinds(chance: random.Random, rounds: int) -> list[str]:
    """Return every kind ``rounds`` times in a random order."""
    return [kind for _ in range(rounds) for kind in chance.sample(KINDS, len(KINDS))]
