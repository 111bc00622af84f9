"""What must hold when a cluster changes, asked of Ray Train's own means alone.

Each fails with Ray's means today, so the driver watches itself (`docs/architecture.md` has the table, with the test in
which our watch passes). They are expected to fail *strictly*: the day a Ray passes one, the test says so, and our watch
can go.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.local_cluster import LocalCluster, Node

pytestmark = [pytest.mark.system, pytest.mark.slow]

raises = pytest.mark.xfail(strict=True, raises=AssertionError, reason="with Ray's own means; see docs/architecture.md")


def facts(
    fact: str, cluster: LocalCluster, folder: Path, sign: str = "", change: Callable[[], object] | None = None
) -> dict[str, Any]:
    """Run a function of ``ray_means``; once the file ``sign`` is there, make a change to the cluster."""
    script = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ray_means.py")), fact, str(folder)],
        env=os.environ | cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if change is not None:
        while not (folder / sign).exists() and script.poll() is None:
            time.sleep(0.2)
        change()
    out, _ = script.communicate(timeout=500)
    if script.returncode != 0:
        raise RuntimeError(f"ray_means.py {fact} ended with {script.returncode}")  # no AssertionError: not expected
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def two_workers(cluster: LocalCluster) -> Node:
    """A node with room for two."""
    return cluster.add_node("one", num_cpus=2)


@raises
def test_a_start_that_fails_half_way_gives_back_its_room(cluster: LocalCluster, tmp_path: Path) -> None:
    two_workers(cluster)
    assert facts("failed_start", cluster, tmp_path)["room_is_back"]


@raises
@pytest.mark.parametrize("what", ["silent_process", "silent_training"])
def test_a_silent_worker_is_ended(cluster: LocalCluster, tmp_path: Path, what: str) -> None:
    two_workers(cluster)
    assert facts(what, cluster, tmp_path)["ended"] != "never"


@raises
def test_a_group_grows_without_doing_a_step_twice(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.add_node("one")
    found = facts("growth", cluster, tmp_path, "steps", lambda: cluster.add_node("two"))
    if found["workers"] != 2:
        raise RuntimeError(f"it never grew: {found}")
    assert found["steps_done_twice"] == 0


def test_workers_learn_that_their_own_node_will_go(cluster: LocalCluster, tmp_path: Path) -> None:
    node = two_workers(cluster)
    assert facts("notice", cluster, tmp_path, "asking", lambda: cluster.drain(node))["told"]


@raises
def test_workers_learn_that_the_node_of_their_driver_will_go(cluster: LocalCluster, tmp_path: Path) -> None:
    two_workers(cluster)
    assert facts("notice", cluster, tmp_path, "asking", lambda: cluster.drain(cluster.nodes[0]))["told"]
