"""A start of the workers that fails half-way gives back what it held, so that the next one finds room."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster
from system.shell import Shell, rows, write_job


@pytest.mark.system
@pytest.mark.slow
def test_what_a_failed_start_held_is_there_for_the_next(shell: Shell, cluster: LocalCluster, drawn: Path) -> None:
    nowhere = {"GLOO_SOCKET_IFNAME": "nowhere0"}  # the processes are there and cannot find each other
    for number in (1, 2):
        cluster.add_node(f"node-{number}", environment=nowhere)
    job = write_job(
        shell.folder,
        drawn,
        storage=str(shell.folder / "runs"),
        cluster={"workers": 2, "max_start_failures": 2, "start_timeout_seconds": 60.0},
    )
    shell.environment = cluster.environment
    done = shell.run("train", str(job), timeout_seconds=600)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "cluster.max_start_failures = 2" in done.stderr
    events = rows(shell.folder / "runs/small/events.driver.jsonl")
    failures = [(event["failure"], "nowhere0" in event["reason"]) for event in events if event["kind"] == "failure"]
    assert failures == [("start", True)] * 3, "none of them waited for room that the one before it held"
