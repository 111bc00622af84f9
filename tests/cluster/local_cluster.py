"""A Ray cluster of several nodes on this machine, each a ``ray start`` that can be killed as a machine is."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).parent / "ray")
START_TIMEOUT_SECONDS = 180.0


@dataclass
class Node:
    """One ``ray start --block``.

    Attributes:
        process: The command.
        name: Label ``name`` of the node.
    """

    process: subprocess.Popen[bytes]
    name: str

    def family(self) -> list[psutil.Process]:
        """Everything that runs on the node."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """The training workers on the node."""
        return self.processes("RayTrainWorker")

    def processes(self, title: str) -> list[psutil.Process]:
        """What runs on the node with ``title`` in its command line."""
        found = []
        for process in self.family():
            try:
                if any(title in part for part in process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def raylet(self) -> psutil.Process:
        """The node's own Ray process."""
        return next(process for process in self.family() if process.name() == "raylet")

    def kill(self) -> None:
        """Kill everything on the node at once, as a power cut does."""
        for process in self.family():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.process.kill()
        self.process.wait()


@dataclass
class LocalCluster:
    """A head without room for workers, and nodes that come and go.

    Attributes:
        folder: Where logs go.
        head_cpus: Room for workers beside the head.
        dashboard: Whether the head answers to the Jobs API, at ``dashboard_address``.
        settings: What its processes have in their environment besides.
    """

    folder: Path
    head_cpus: int = 0
    dashboard: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    address: str = ""

    def __post_init__(self) -> None:
        self._temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need short paths
        self._environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "10",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            **self.settings,
        }
        port, dashboard_port = _free_port(), _free_port()
        self._start(
            "head", "--head", f"--port={port}", f"--num-cpus={self.head_cpus}", f"--temp-dir={self._temporary}",
            f"--include-dashboard={str(self.dashboard).lower()}", f"--dashboard-port={dashboard_port}",
            '--labels={"name": "head"}',
        )  # fmt: skip
        self.address = f"127.0.0.1:{port}"
        self.dashboard_address = f"http://127.0.0.1:{dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs to find the cluster."""
        return {key: self._environment[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")} | {
            "RAY_ADDRESS": self.address
        }

    def add_node(self, name: str, num_cpus: int = 1, environment: dict[str, str] | None = None) -> Node:
        """Start a node and return it; the cluster knows of it a moment later."""
        labels = json.dumps({"name": name})
        options = [f"--address={self.address}", f"--num-cpus={num_cpus}", f"--labels={labels}"]
        return self._start(name, *options, environment=environment)

    def _start(self, name: str, *options: str, environment: dict[str, str] | None = None) -> Node:
        """Start a node; on a busy machine Ray may give up on its own parts, so it is tried again."""
        for _ in range(2):
            try:
                return self._start_once(name, *options, environment=environment or {})
            except RuntimeError:
                continue
        return self._start_once(name, *options, environment=environment or {})

    def _start_once(self, name: str, *options: str, environment: dict[str, str]) -> Node:
        agent = f"--dashboard-agent-listen-port={_free_port()}"  # jobs are sent to it; other nodes have their own
        fixed = ["--object-store-memory=80000000", "--node-ip-address=127.0.0.1", agent]
        command = [RAY, "start", "--block", *fixed, *options]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment | environment,
                start_new_session=True,
            )
        node = Node(process, name)
        end = time.monotonic() + START_TIMEOUT_SECONDS
        while "Ray runtime started" not in (self.folder / f"{name}.log").read_text():
            if process.poll() is not None or time.monotonic() > end:
                node.kill()
                raise RuntimeError((self.folder / f"{name}.log").read_text())
            time.sleep(0.1)
        self.nodes.append(node)
        return node

    def drain(self, node: Node, seconds: int = 60) -> None:
        """Announce that a node will be taken away, as a cloud does before it takes a spot machine."""
        code = (
            "import ray, sys, time\n"
            "from ray._raylet import GcsClient\n"
            "from ray.core.generated import autoscaler_pb2\n"
            "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error')\n"
            "node = next(n for n in ray.nodes() if n['Alive'] and n['Labels'].get('name') == sys.argv[2])\n"
            "ok, why = GcsClient(address=sys.argv[1]).drain_node(node['NodeID'],\n"
            "    autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, 'spot',\n"
            "    int((time.time() + int(sys.argv[3])) * 1000))\n"
            "assert ok, why\n"
        )
        command = [sys.executable, "-c", code, self.address, node.name, str(seconds)]
        subprocess.run(command, env=self._environment, check=True, timeout=120, capture_output=True)

    def close(self) -> None:
        """End everything that was started here."""
        for node in reversed(self.nodes):
            if node.process.poll() is None:
                node.kill()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
