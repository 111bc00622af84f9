"""The doctor on a cluster of two nodes: through the Jobs API, from a node, with a wrong token, with silent nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster
from system.shell import Shell, write_job

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE_SECONDS = 1200.0
NODE_SUBJECTS = {
    "versions",
    "clock",
    "GPUs",
    "shared memory",
    "open files",
    "storage of runs",
    "conditional put",
    "directory marker",
} | {
    "training data",
    "validation data",
}
SILENT_NODE = """
import json, os, signal, time
from yolofleet.cluster.doctor.nodes import Probes, list_nodes
from yolofleet.core.ray_runtime import tune_connection
from yolofleet.specs.cluster import ClusterSpec

with tune_connection():
    import ray
    nodes = list_nodes(ray.nodes(), ClusterSpec())
    with Probes(nodes) as probes:
        processes = probes.ask(nodes, os.getpid, seconds=300).facts
        began = time.monotonic()
        hung = probes.ask(nodes, time.sleep, 600, seconds=3)
        after = probes.ask(nodes, time.time, seconds=60)
        stopped, other = nodes
        os.kill(processes[stopped], signal.SIGSTOP)
        third = probes.ask(nodes, time.time, seconds=20)
        os.kill(processes[other], signal.SIGKILL)
        last = probes.ask([other], time.time, seconds=60)
        took = time.monotonic() - began
print(json.dumps({
    "nodes": len(nodes), "hung": len(hung.missing), "after": len(after.facts), "took": took,
    "third": [node.id == stopped.id for node in third.missing], "last": [s.reason for s in last.missing.values()],
}))
"""


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head and a node, each with room for a worker, that answer to the Jobs API."""
    made = LocalCluster(tmp_path_factory.mktemp("cluster"), head_cpus=1, dashboard=True)
    made.add_node("second")
    yield made
    made.close()


@pytest.fixture
def asker(shell: Shell, two_nodes: LocalCluster) -> Shell:
    """Someone with the cluster's token."""
    shell.environment = {key: value for key, value in two_nodes.environment.items() if key != "RAY_ADDRESS"}
    return shell


def test_every_node_is_looked_at_through_the_jobs_api_and_nothing_stays(
    asker: Shell, drawn: Path, two_nodes: LocalCluster
) -> None:
    job = write_job(asker.folder, drawn, storage=str(asker.folder / "runs"))
    address = ["--address", two_nodes.dashboard_address]
    done = asker.run("cluster", "doctor", str(job), *address, "--json", timeout_seconds=PATIENCE_SECONDS)
    report = json.loads(done.stdout)
    failures = [line for line in report["lines"] if line["verdict"] == "fail"]
    assert done.returncode == 0 and failures == [] and report["left_out"] == [], done.stdout
    by_place: dict[str, dict[str, dict[str, str]]] = {}
    for line in report["lines"]:
        by_place.setdefault(line["place"], {})[line["subject"]] = line
    cluster = by_place.pop("cluster")
    by_place.pop("head (from here)")
    assert {"authentication", "Ray", "room for workers", "shard cache", "MLflow", "all-reduce"} == cluster.keys()
    assert cluster["authentication"]["seen"] == "asks for a token, and accepts yours"
    assert cluster["all-reduce"]["seen"].startswith("gloo, 2 processes of 2 nodes: ")
    assert len(by_place) == 2 and all(lines.keys() == NODE_SUBJECTS for lines in by_place.values())
    assert not (asker.folder / "runs").exists()
    assert json.loads(asker.succeed("jobs", "list", *address, "--json")) == []
    assert asker.environment["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


def test_on_a_node_without_a_job_what_depends_on_it_is_left_out(asker: Shell, two_nodes: LocalCluster) -> None:
    asker.environment["RAY_ADDRESS"] = two_nodes.address
    done = asker.run("cluster", "doctor", timeout_seconds=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2.60.0, 2 nodes" in done.stdout and "not checked: room for workers, storage" in done.stdout


def test_a_wrong_token_no_token_and_a_dead_address_are_failures_with_the_cure(
    asker: Shell, two_nodes: LocalCluster, tmp_path: Path
) -> None:
    token = asker.environment.pop("RAY_AUTH_TOKEN")
    for wrong in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}):
        for address in (two_nodes.dashboard_address, two_nodes.address):
            stranger = Shell(asker.folder, asker.environment | wrong)
            done = stranger.run("cluster", "doctor", "--address", address, "--json", timeout_seconds=300)
            (line,) = json.loads(done.stdout)["lines"]
            assert done.returncode == 1 and (line["subject"], line["verdict"]) == ("authentication", "fail"), (
                done.stdout
            )
            assert "RAY_AUTH_TOKEN" in line["cure"] and token not in done.stdout + done.stderr
    for address in ("http://127.0.0.1:9", "127.0.0.1:9", "ray://127.0.0.1:9"):
        done = asker.run("cluster", "doctor", "--address", address, timeout_seconds=300)
        assert done.returncode == 1 and "nothing answers at" in " ".join(done.stdout.split()), done.stdout
    done = asker.run("cluster", "doctor", "--address", "somewhere", timeout_seconds=300)
    assert done.returncode == 2 and "--address somewhere" in done.stderr


def test_nodes_that_hang_stop_or_die_are_silent_and_nobody_waits_for_them(two_nodes: LocalCluster) -> None:
    command = [sys.executable, "-c", SILENT_NODE]
    environment = os.environ | two_nodes.environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["nodes"], found["hung"], found["after"]) == (2, 2, 2), "a question that hangs does not stop the next"
    assert found["third"] == [True] and len(found["last"]) == 1
    assert found["took"] < 500, "the deadlines hold, not the ten minutes of the hanging question"
