"""Kill, stop or take away anything: the run ends as the undisturbed one, and says what happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch

from cluster.local_cluster import LocalCluster
from system.shell import Shell, digests, kill_group, rows, wait_for, write_job

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE_SECONDS = 900.0


def job_of(folder: Path, drawn: Path, num_steps: int, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "epochs": num_steps * 8 / 64,
        "evaluation": {"every_epochs": 1000.0},
        "checkpoint": {"every_steps": 10, "keep": 3},
        "cluster__start_timeout_seconds": 300.0,
    }
    return str(write_job(folder, drawn, **(fields | changes)))


def reached(run: Path, step: int) -> None:
    wait_for(
        lambda: [row for row in rows(run / "metrics.jsonl") if row["step"] >= step], PATIENCE_SECONDS, f"step {step}"
    )


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [row for log in sorted(run.glob("events*.jsonl")) for row in rows(log)]
    return [row for row in sorted(found, key=lambda row: str(row["time"])) if row["kind"] == kind]


def assert_same_weights(run: Path, other: Path, num_steps: int) -> None:
    for file in ("weights", "average", "moments"):
        ours, theirs = (
            safetensors.torch.load_file(folder / f"checkpoints/step-{num_steps}/{file}.safetensors")
            for folder in (run, other)
        )
        assert ours.keys() == theirs.keys()
        different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
        assert different == [], f"{file}: {len(different)} of {len(ours)} tensors differ"


def undisturbed(folder: Path, drawn: Path, num_steps: int, num_workers: int) -> Path:
    """The same job under torchrun, where nothing happens to it."""
    folder.mkdir()
    job = job_of(folder, drawn, num_steps)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}"]
    done = subprocess.run(
        [*torchrun, "-m", "yolofleet.training", job],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "runs" / "small"


def workers_of(cluster: LocalCluster) -> dict[int, psutil.Process]:
    """Return the training workers of all nodes that are there."""
    return {found.pid: found for node in cluster.nodes[1:] if node.process.poll() is None for found in node.workers()}


def test_kills_at_random_times_change_no_bit(shell: Shell, drawn: Path, cluster: LocalCluster) -> None:
    """A worker, a worker while the group starts, a whole node, the driver: each at a random moment."""
    num_steps = 1500
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    shell.environment = cluster.environment
    job = job_of(shell.folder, drawn, num_steps)
    run = shell.folder / "runs" / "small"
    for name in ("first", "second", "third"):
        cluster.add_node(name)
    driver = shell.start("train", job)

    reached(run, chance.randrange(15, 200))
    known = workers_of(cluster)
    chance.choice(list(known.values())).send_signal(signal.SIGKILL)
    wait_for(lambda: workers_of(cluster).keys() - known.keys(), PATIENCE_SECONDS, "the workers of the next start")
    time.sleep(3 * chance.random())
    found = workers_of(cluster)
    found[chance.choice(sorted(found.keys() - known.keys()))].send_signal(signal.SIGKILL)
    wait_for(lambda: len(events(run, "failure")) == 2, PATIENCE_SECONDS, "the death while it starts")
    num_starts = len(events(run, "start"))
    wait_for(lambda: len(events(run, "start")) > num_starts, PATIENCE_SECONDS, "the start after it")

    reached(run, chance.randrange(300, 600))
    num_starts = len(events(run, "start"))
    chance.choice([node for node in cluster.nodes[1:] if node.workers()]).kill()
    wait_for(lambda: len(events(run, "start")) > num_starts, PATIENCE_SECONDS, "the start after the node's death")
    assert driver.poll() is None, "the command has nothing on a node that only trains"

    reached(run, chance.randrange(900, 1200))
    time.sleep(chance.random())
    kill_group(driver)
    shell.succeed("train", job, timeout_seconds=PATIENCE_SECONDS)

    regained = events(run, "regained")
    assert regained and all(event["steps_redone"] <= 10 for event in regained)
    assert len(digests(run)) == num_steps * 2
    assert_same_weights(run, undisturbed(shell.folder / "undisturbed", drawn, num_steps, 2), num_steps)


def test_a_group_grows_shrinks_and_leaves_in_time(shell: Shell, drawn: Path, cluster: LocalCluster) -> None:
    num_steps = 20_000  # more than the test waits for
    shell.environment = cluster.environment
    job = job_of(
        shell.folder, drawn, num_steps, cluster={"workers": [1, 2], "resize_interval_seconds": 2.0}, log_every_steps=1
    )
    run = shell.folder / "runs" / "small"
    cluster.add_node("first")
    driver = shell.start("train", job)
    reached(run, 3)
    second = cluster.add_node("second")
    wait_for(lambda: len(events(run, "start")) == 2, PATIENCE_SECONDS, "the larger group")
    assert [event["workers"] for event in events(run, "start")] == [1, 2]
    assert "room for more workers" in events(run, "resize")[0]["reason"]

    wait_for(lambda: len(events(run, "regained")) == 1, PATIENCE_SECONDS, "its first step")
    cluster.drain(second)
    wait_for(lambda: len(events(run, "start")) == 3, PATIENCE_SECONDS, "the group without the announced node")
    assert events(run, "failure")[0]["failure"] == "preemption"
    assert events(run, "start")[2]["workers"] == 1
    wait_for(lambda: len(events(run, "regained")) == 2, PATIENCE_SECONDS, "its first step")
    assert all(event["steps_redone"] <= 1 for event in events(run, "regained"))
    second.kill()

    driver.terminate()
    assert driver.wait(timeout=PATIENCE_SECONDS) == 1
    assert "stopped (SIGTERM) at step" in shell.output()
    assert events(run, "stopped")
    seen = digests(run)  # each step and micro-batch once, whoever computed it
    last = max(step for step, _ in seen)
    assert len(seen) == (last + 1) * 2
    assert len(set(seen.values())) == len(seen)


def test_evaluation_runs_on_a_node_of_its_own_and_survives_its_death(
    shell: Shell, drawn: Path, cluster: LocalCluster
) -> None:
    """The workers go on meanwhile; each evaluation is there once at the end, and the best is released."""
    num_steps = 600
    shell.environment = cluster.environment
    job = job_of(shell.folder, drawn, num_steps, evaluation={"every_epochs": 12.5}, checkpoint={"every_steps": 50})
    run = shell.folder / "runs" / "small"
    for name in ("first", "second", "third"):
        cluster.add_node(name)
    driver = shell.start("train", job)
    wait_for(lambda: evaluators(cluster), PATIENCE_SECONDS, "an evaluation beside the training")
    (process, *_) = evaluators(cluster)
    begin = len(rows(run / "metrics.jsonl"))
    wait_for(lambda: len(rows(run / "metrics.jsonl")) > begin, PATIENCE_SECONDS, "a step during the evaluation")
    process.kill()
    assert driver.wait(timeout=PATIENCE_SECONDS) == 0, shell.output()

    assert events(run, "evaluation_failed")
    assert not [row for row in rows(run / "metrics.jsonl") if "val_AP" in row]
    judged = {row["step"]: row["val_AP"] for row in rows(run / "metrics.driver.jsonl")}
    assert len(judged) == len(rows(run / "metrics.driver.jsonl"))
    assert {100, num_steps} <= judged.keys() <= set(range(100, num_steps + 1, 100))
    released = json.loads((run / "report/release.json").read_text())
    assert released["step"] == max(judged, key=lambda step: (judged[step], step))
    assert (run / f"checkpoints/step-{released['step']}").is_dir()


def evaluators(cluster: LocalCluster) -> list[psutil.Process]:
    """Return the processes that evaluate at the moment."""
    return [process for node in cluster.nodes[1:] for process in node.processes("ray::EvaluationActor")]


def test_a_stopped_worker_is_found_by_its_silence(shell: Shell, drawn: Path, cluster: LocalCluster) -> None:
    num_steps = 20_000
    shell.environment = cluster.environment
    job = job_of(shell.folder, drawn, num_steps, cluster={"workers": 1, "hang_timeout_seconds": 15.0})
    run = shell.folder / "runs" / "small"
    node = cluster.add_node("first")
    driver = shell.start("train", job)
    reached(run, 12)
    node.workers()[0].send_signal(signal.SIGSTOP)
    wait_for(lambda: len(events(run, "start")) == 2, PATIENCE_SECONDS, "the start after the hang")
    assert "gave no sign for cluster.hang_timeout_seconds" in events(run, "failure")[0]["reason"]
    (stacks,) = (run / "stacks").iterdir()
    assert "T (stopped)" in stacks.read_text()
    assert events(run, "start")[1]["step"] >= 10
    driver.terminate()
    driver.wait(timeout=PATIENCE_SECONDS)


def test_hosts_without_access_to_the_storage_are_named_before_training(
    shell: Shell, drawn: Path, cluster: LocalCluster
) -> None:
    cluster.add_node("first")
    job = job_of(shell.folder, drawn, 10)
    code = (
        "import os, ray, sys\n"
        "from yolofleet.specs.job import JobSpec\n"
        "from yolofleet.training.supervision.nodes import check_reach, hosts\n"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error')\n"
        "check_reach(JobSpec.load(sys.argv[2]).with_absolute_paths(), hosts())\n"
    )
    for storage, problem in {
        "runs": "does not show it the run directory",
        "s3://bucket/runs": "s3://bucket/runs/small/job.yaml: no S3 credentials",  # the nodes have none
    }.items():
        Path(job).write_text(Path(job).read_text().replace("storage: runs", f"storage: {storage}"))
        done = subprocess.run(
            [sys.executable, "-c", code, cluster.address, job],
            cwd=shell.folder,
            env=os.environ | cluster.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert problem in done.stderr, done.stderr[-2000:]
        assert "use storage that all hosts reach" in done.stderr


def test_the_notice_of_the_head_is_used_to_save(shell: Shell, drawn: Path, cluster: LocalCluster) -> None:
    num_steps = 400
    shell.environment = cluster.environment
    job = job_of(shell.folder, drawn, num_steps, checkpoint={"every_steps": 1000, "keep": 3}, log_every_steps=1)
    run = shell.folder / "runs" / "small"
    for name in ("first", "second"):
        cluster.add_node(name)
    driver = shell.start("train", job)
    reached(run, 20)
    cluster.nodes[0].process.terminate()  # as `systemctl stop` and Kubernetes do; Ray takes 30 s to end
    assert driver.wait(timeout=60) == 1
    assert "the node of this command is about to be taken away" in shell.output()
    (left,) = events(run, "left")
    assert left["step"] >= 20
    assert not events(run, "stopped")[0]["is_wilful"]
    cluster.close()

    second = LocalCluster(shell.folder)
    try:
        shell.environment = second.environment
        for name in ("first", "second"):
            second.add_node(name)
        shell.succeed("train", job, timeout_seconds=PATIENCE_SECONDS)
    finally:
        second.close()
    assert [event["step"] for event in events(run, "start")] == [0, left["step"]]
    (regained,) = events(run, "regained")
    assert regained["steps_redone"] == 0
    assert regained["seconds_lost"] > 5, "the time without a head is lost"
    assert_same_weights(run, undisturbed(shell.folder / "undisturbed", drawn, num_steps, 2), num_steps)
