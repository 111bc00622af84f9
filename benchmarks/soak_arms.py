"""Two arms of the soak: what a pre-emption wastes that is announced, and one that only periodic checkpoints meet.

Both train the same job with two workers on three nodes, one of them to spare, and lose a node that trains every so
often; another one takes its place. In the arm `announced` the node is drained first, as a cloud announces the end of a
spot machine, and dies when its notice is over: the run saves its step and leaves. In the arm `periodic` it dies without
a word: the run goes back to its last checkpoint. Steps and seconds that were wasted are the run's own account.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.local_cluster import LocalCluster, Node
from soak_account import Event, costs
from soak_ground import write_job, yolofleet
from yolofleet.tracking.goodput import summarize_run
from yolofleet.tracking.run_directory import RunDirectory

NOTICE_SECONDS = 30
WORKERS = 2
STEPS_PER_MINUTE = 90
LONGEST_START_SECONDS = 600.0
LONGEST_RETURN_SECONDS = 300.0
Preempt = Callable[[LocalCluster, Node], None]


def announce(cluster: LocalCluster, node: Node) -> None:
    """Drain a node, and let it die when its notice is over."""
    cluster.drain(node, NOTICE_SECONDS)
    time.sleep(NOTICE_SECONDS)
    node.kill()


def strike(cluster: LocalCluster, node: Node) -> None:
    """Let a node die without a word."""
    node.kill()


ARMS: dict[str, Preempt] = {"announced": announce, "periodic": strike}


def compare_arms(minutes: float, pause_seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Run both arms, one after the other, each for so many minutes; returns the figures of each."""
    yolofleet("data", "synth", "images", "--images", "80", "--seed", "3", "--image-size", "128", folder=folder)
    for part in ("train", "val"):
        yolofleet("data", "shard", f"images/instances_{part}.json", "images/images", f"shards/{part}", folder=folder)
    chance = random.Random(seed)
    return {name: run_arm(name, preempt, minutes, pause_seconds, chance, folder) for name, preempt in ARMS.items()}


def run_arm(
    name: str, preempt: Preempt, minutes: float, pause_seconds: float, chance: random.Random, folder: Path
) -> dict[str, Any]:
    """Train on a cluster that loses nodes, and return what it wasted."""
    cluster = LocalCluster(folder)
    run = RunDirectory.open(folder / "runs", name)
    driver: subprocess.Popen[bytes] | None = None
    done: list[tuple[float, str]] = []
    num_nodes = 0
    try:
        for _ in range(WORKERS + 1):
            num_nodes += 1
            cluster.add_node(f"{name}-{num_nodes}")
        driver = start_driver(name, cluster, int(minutes * STEPS_PER_MINUTE), folder)
        wait_until(lambda: bool(run.metrics()), driver, LONGEST_START_SECONDS)
        end = time.monotonic() + minutes * 60
        while time.monotonic() + pause_seconds < end and driver.poll() is None:
            time.sleep(pause_seconds)
            training = [node for node in cluster.nodes[1:] if node.process.poll() is None and node.workers()]
            if not training:
                continue
            num_nodes += 1
            cluster.add_node(f"{name}-{num_nodes}")
            done.append((time.time(), name))
            print(f"{time.strftime('%H:%M:%S')} {name}: a node is taken", file=sys.stderr, flush=True)
            preempt(cluster, chance.choice(training))
            wait_until(lambda: number(run.events(), "regained") >= len(done), driver, LONGEST_RETURN_SECONDS)
    finally:
        if driver is not None and driver.poll() is None:
            driver.terminate()
            driver.wait(120)
        cluster.close()
    return account(done, run.events(), run.metrics())


def start_driver(name: str, cluster: LocalCluster, num_steps: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command that trains the arm's run."""
    job = write_job(folder, "unused", num_steps)
    changes = [f"name={name}", f"storage={folder}/runs", "data.train=shards/train", "data.val=shards/val"]
    changes += ["tracking={}", f"cluster.workers={WORKERS}", "cluster.evaluation=inline", "data.cache=null"]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "yolofleet", "train", str(job), *changes],
            cwd=folder,
            env=os.environ | cluster.environment | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen[bytes], longest_seconds: float) -> None:
    """Wait for a condition, or for the end of the run; what does not come in time shows in the figures."""
    end = time.monotonic() + longest_seconds
    while not condition() and driver.poll() is None and time.monotonic() < end:
        time.sleep(1)


def number(events: list[Event], kind: str) -> int:
    """Return how many events are of a kind."""
    return sum(event["kind"] == kind for event in events)


def account(done: list[tuple[float, str]], events: list[Event], rows: list[Event]) -> dict[str, Any]:
    """Return what the pre-emptions of an arm wasted, by the run's own events.

    Args:
        done: When each node was taken, in seconds since 1970, and the arm.
        events: The run's events, in the order of their times.
        rows: Its rows of metrics.
    """
    setbacks = [cost for _, cost in costs(done, events) if cost]
    summary = summarize_run(events, rows)
    return {
        "preemptions": len(done),
        "setbacks": len(setbacks),
        "wasted_steps_mean": mean([float(cost["steps_redone"]) for cost in setbacks]),
        "wasted_seconds_mean": mean([float(cost["seconds_lost"]) for cost in setbacks]),
        "wasted_steps_most": max((int(cost["steps_redone"]) for cost in setbacks), default=None),
        "wasted_seconds_most": max((float(cost["seconds_lost"]) for cost in setbacks), default=None),
        "goodput": summary.goodput,
        "steps": max((int(row["step"]) for row in rows), default=0),
        "failures": summary.failures,
    }


def mean(values: list[float]) -> float | None:
    """Return the mean; None of nothing."""
    return round(sum(values) / len(values), 3) if values else None


def table(arms: dict[str, dict[str, Any]]) -> list[str]:
    """Return the figures of the arms side by side."""
    names = list(next(iter(arms.values())))
    lines = [f"{'':<22}" + "".join(f"{arm:>14}" for arm in arms)]
    return lines + [f"{name:<22}" + "".join(f"{arms[arm][name]!s:>14}" for arm in arms) for name in names]
