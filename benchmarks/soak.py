"""Chaos: a run on a cluster of this machine while something breaks every half a minute.

    python benchmarks/soak.py [--minutes 20] [--seed N] [--keep FOLDER] [--json]
    python benchmarks/soak.py --arms [--minutes 20] [--pause-seconds 60] [--seed N] [--json]

Data and run directory lie in an S3 server behind a proxy, MLflow is a real server, every node is a ``ray start``. Every
20 to 40 seconds one of these happens: a worker is killed; a node's Ray process is killed; a node loses its power; a
node is added; a worker is stopped (SIGSTOP); a whole node answers nothing for 15 s (all its processes are stopped: what
a cut cable looks like from outside); S3 answers 503 for 10 s; MLflow answers nothing for 30 s; the newest checkpoint is
damaged. Then the run is left alone until it is done.

- ``faults``: how often each happened; ``table``: each with what it cost.
- ``visible``: how many of each the run's own events show; ``invisible``: the kinds that they do not show twice.
- ``steps_redone_max``, ``steps_redone_max_damaged``: after a failure, and after one that met a damaged checkpoint.
- ``seconds_lost_median``, ``goodput``: from the run's own account (yolofleet.tracking.goodput).
- ``restart_own_seconds_max``, ``restart_ray_seconds_median``: of each restart, from the failure to the first step, less
  ``restart_waited_seconds_max`` for nodes and storage that were away; ``restarts``: each by itself.
- ``completed``: the run ended, every sample was seen exactly once, MLflow holds every step exactly once.
- ``leaks``: placement groups, processes and temporary files left at the end, file handles that the command gathers.

``--arms`` does something else: two runs that lose nodes, announced and not, side by side (`soak_arms.py`).

``--keep`` names a folder for what the figures are made of: the run's events, what was done to it, the command's log.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "platform"), str(ROOT / "benchmarks")]

from cluster.local_cluster import LocalCluster  # noqa: E402 - the cluster that the tests use
from faulty_s3 import faulty_s3  # noqa: E402
from soak_account import after_damage, costs, leaks, signs  # noqa: E402 - beside this file
from soak_arms import compare_arms, table  # noqa: E402
from soak_faults import Soak, shuffled_kinds  # noqa: E402
from soak_ground import placement_groups, start_mlflow, temporary_names, write_job, yolofleet  # noqa: E402
from yolofleet.tracking.goodput import summarize_run  # noqa: E402
from yolofleet.tracking.restarts import restarts  # noqa: E402
from yolofleet.tracking.run_directory import RunDirectory  # noqa: E402

PAUSE_SECONDS = (20.0, 40.0)
CALM_SECONDS = 900.0
STEPS_PER_MINUTE = 90
"""More than two cores do while things break, so that the run outlasts the last fault."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def soaked(minutes: float, seed: int, folder: Path, kept: Path | None) -> dict[str, Any]:
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
            if kept is not None:
                keep(soak, kept)
            cluster.close()
            os.killpg(mlflow.pid, signal.SIGKILL)


def keep(soak: Soak, kept: Path) -> None:
    """Write what the figures are made of."""
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in soak.run.events()))
    (kept / "faults.jsonl").write_text("".join(f"{json.dumps(fault)}\n" for fault in soak.done))
    shutil.copy(soak.folder / "driver.log", kept)


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
    account, again = summarize_run(events, rows), restarts(events)
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
    history = open_client(tracking_uri).get_metric_history(run_id, "loss/total")
    return sorted(metric.step for metric in history) == steps


def main() -> None:
    """Soak and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--arms", action="store_true", help="announced against unannounced pre-emptions")
    parser.add_argument("--pause-seconds", type=float, default=60.0, help="of the arms, between two pre-emptions")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = f"{folder}/tmp"  # what the run leaves there is the run's
        Path(tempfile.tempdir).mkdir()
        if arguments.arms:
            arms = compare_arms(arguments.minutes, arguments.pause_seconds, arguments.seed, Path(folder))
            print(json.dumps(arms, indent=1) if arguments.json else "\n".join(table(arms)))
            return
        result = soaked(arguments.minutes, arguments.seed, Path(folder), arguments.keep) | {"seed": arguments.seed}
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
