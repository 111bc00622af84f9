"""Chaos: a run on a cluster of this machine while something breaks every half a minute.

    python benchmarks/soak.py [--minutes 20] [--seed N] [--json]

Data and run directory lie in an S3 server behind a proxy, MLflow is a real server, every node is a ``ray start``. Every
20 to 40 seconds one of these happens: a worker is killed; a node's Ray process is killed; a node loses its power; a
node is added; a worker is stopped (SIGSTOP); a whole node answers nothing for 15 s (all its processes are stopped: what
a cut cable looks like from outside); S3 answers 503 for 10 s; MLflow answers nothing for 30 s; the newest checkpoint is
damaged. Then the run is left alone until it is done.

- ``faults``: how often each happened; ``table``: each with what it cost.
- ``visible``: how many of each the run's own events show; ``invisible``: the kinds that they do not show twice.
- ``steps_redone_max``, ``steps_redone_max_damaged``: after a failure, and after one that met a damaged checkpoint.
- ``seconds_lost_median``, ``goodput``: from the run's own account (yolofleet.tracking.survival).
- ``restart_own_seconds_max``, ``restart_ray_seconds_median``: of each restart, from the failure to the first step, less
  ``restart_waited_seconds_max`` for nodes and storage that were away; ``restarts``: each by itself.
- ``completed``: the run ended, every sample was seen exactly once, MLflow holds every step exactly once.
- ``leaks``: placement groups, processes and temporary files left at the end, file handles that the command gathers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "platform"), str(ROOT / "benchmarks")]

from cluster.local_cluster import LocalCluster, Node  # noqa: E402 - the cluster that the tests use
from faulty_s3 import FaultyProxy, faulty_s3  # noqa: E402
from soak_account import after_damage, costs, leaks, signs  # noqa: E402 - beside this file
from yolofleet.tracking.restarts import restarts  # noqa: E402
from yolofleet.tracking.run_directory import RunDirectory  # noqa: E402
from yolofleet.tracking.survival import survival  # noqa: E402

PAUSE_SECONDS = (20.0, 40.0)
PARTITION_SECONDS = 15.0
S3_SECONDS = 10.0
MLFLOW_SECONDS = 30.0
CALM_SECONDS = 900.0
SETTLED_SECONDS = 60.0
"""By this age a command has its connections to Ray and MLflow."""
STEPS_PER_MINUTE = 90
"""More than two cores do while things break, so that the run outlasts the last fault."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


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


def soaked(minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Do it all and return the figures."""
    temporary_before = temporary_names()
    with faulty_s3() as proxy:
        os.environ.update(CREDENTIALS | {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"})
        import boto3

        boto3.client("s3").create_bucket(Bucket="bucket")
        yolofleet("data", "synth", "images", "--images", "80", "--seed", "3", "--image-size", "128", folder=folder)
        for part in ("train", "val"):
            annotations = f"images/instances_{part}.json"
            yolofleet("data", "shard", annotations, "images/images", f"s3://bucket/{part}", folder=folder)
        mlflow, tracking_uri = start_mlflow(folder)
        cluster = LocalCluster(folder)
        try:
            soak = Soak(folder, cluster, proxy, mlflow, random.Random(seed))
            return torment(soak, minutes, tracking_uri, temporary_before)
        finally:
            cluster.close()
            os.killpg(mlflow.pid, signal.SIGKILL)


def torment(soak: Soak, minutes: float, tracking_uri: str, temporary_before: set[str]) -> dict[str, Any]:
    """Start the run, break things, let it finish, and look."""
    soak.add_node()
    soak.add_node()
    job = write_job(soak.folder, tracking_uri, num_steps=int(minutes * STEPS_PER_MINUTE))
    environment = os.environ | soak.cluster.environment | {"OMP_NUM_THREADS": "1"}
    num_drivers = 0

    def drive() -> subprocess.Popen[bytes]:
        nonlocal num_drivers
        num_drivers += 1
        output = soak.folder / "driver.log"
        if num_drivers > 1:
            print(f"the command ended: ...{output.read_text()[-1500:]}\nit is started again", file=sys.stderr)
        with output.open("ab") as log:
            command = [sys.executable, "-m", "yolofleet", "train", str(job)]
            return subprocess.Popen(command, cwd=soak.folder, env=environment, stdout=log, stderr=log)

    driver = drive()
    kinds = shuffled_kinds(soak.chance, rounds=max(1, int(minutes / 4)))
    while not soak.run.metrics() and driver.poll() is None:
        time.sleep(1)
    soak.count_handles(driver)
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end and kinds:
        time.sleep(soak.chance.uniform(*PAUSE_SECONDS))
        if driver.poll() == 0:
            break
        driver = driver if driver.poll() is None else drive()
        soak.count_handles(driver)
        soak.break_something(kinds)
    calm_until = time.monotonic() + CALM_SECONDS
    while time.monotonic() < calm_until and driver.poll() != 0:
        driver = driver if driver.poll() is None else drive()
        soak.count_handles(driver)
        time.sleep(2)
    completed = driver.poll() == 0
    if not completed and driver.poll() is None:
        driver.kill()
        driver.wait()
    return figures(soak, completed, num_drivers, tracking_uri, temporary_before)


def figures(
    soak: Soak, completed: bool, num_drivers: int, tracking_uri: str, temporary_before: set[str]
) -> dict[str, Any]:
    """Return what the run's own account says."""
    events, rows = soak.run.events(), soak.run.metrics()
    account, again = survival(events, rows), restarts(events)
    regained = [event for event in events if event["kind"] == "regained"]
    damaged = after_damage(events)
    shown = signs(soak.done, events)
    faults, visible = Counter(kind for _, kind in soak.done), Counter[str]()
    for (_, kind), sign in zip(soak.done, shown, strict=True):
        visible[kind] += sign
    steps = [row["step"] for row in rows if "loss" in row]
    keys = [entry.key for entry in soak.run.storage.list()]
    return {
        "faults": dict(faults),
        "visible": dict(visible),
        "invisible": sorted(kind for kind in faults if visible[kind] < min(2, faults[kind])),
        "steps_redone_max": max((event["steps_redone"] for event in regained if event not in damaged), default=0),
        "steps_redone_max_damaged": max((event["steps_redone"] for event in damaged), default=0),
        "seconds_lost_median": statistics.median([event["seconds_lost"] for event in regained] or [0.0]),
        "restart_own_seconds_max": max((restart.own_seconds for restart in again), default=0.0),
        "restart_ray_seconds_median": statistics.median([restart.ray_seconds for restart in again] or [0.0]),
        "restart_waited_seconds_max": max((restart.waited_seconds for restart in again), default=0.0),
        "restarts": [asdict(restart) for restart in again],
        "goodput": account.goodput,
        "completed": completed and steps == list(range(1, len(steps) + 1)) and mirrored(soak.run, tracking_uri, steps),
        "leaks": leaks(
            placement_groups(soak.cluster),
            [process.pid for node in soak.nodes() for process in node.workers()],
            temporary_names(),
            temporary_before,
            keys,
            soak.handles,
        ),
        "driver_handles": {"first": soak.handles[:1], "last": soak.handles[-1:], "most": max(soak.handles, default=0)},
        "steps": len(steps),
        "drivers": num_drivers,
        "failures": account.failures,
        "table": [
            {
                "fault": kind,
                "steps_redone": cost.get("steps_redone"),
                "seconds_lost": cost.get("seconds_lost"),
                "visible": sign,
            }
            for (kind, cost), sign in zip(costs(soak.done, events), shown, strict=True)
        ],
    }


def mirrored(run: RunDirectory, tracking_uri: str, steps: list[int]) -> bool:
    """Return whether MLflow holds every step once."""
    from yolofleet.tracking.mirror import sync_now
    from yolofleet.tracking.mlflow_store import open_client

    run_id = sync_now(run, tracking_uri, "yolofleet")
    history = open_client(tracking_uri).get_metric_history(run_id, "loss")
    return sorted(metric.step for metric in history) == steps


def main() -> None:
    """Soak and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = f"{folder}/tmp"  # what the run leaves there is the run's
        Path(tempfile.tempdir).mkdir()
        result = soaked(arguments.minutes, arguments.seed, Path(folder)) | {"seed": arguments.seed}
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        if name not in ("table", "restarts"):
            print(f"{name:<22} {value}")
    for row in result["table"]:
        seen = "" if row["visible"] else "   not in the events"
        print(f"  {row['fault']:<22} {row['steps_redone']!s:>6} steps redone {row['seconds_lost']!s:>8} s lost{seen}")


if __name__ == "__main__":
    main()
