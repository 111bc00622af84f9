"""Jobs sent to a cluster over its Jobs API: followed, cut off, stopped, sent twice, refused."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster
from system.shell import Shell, digests, rows, wait_for, write_job

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE_SECONDS = 600.0


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster of one node with room for two workers, that answers to the Jobs API."""
    talkative = {"TORCH_CPP_LOG_LEVEL": "INFO"}  # the workers say how they connect
    made = LocalCluster(tmp_path_factory.mktemp("cluster"), head_cpus=2, dashboard=True, settings=talkative)
    yield made
    made.close()


@pytest.fixture
def sender(shell: Shell, head: LocalCluster) -> Shell:
    """Someone with the cluster's token."""
    shell.environment = {key: value for key, value in head.environment.items() if key != "RAY_ADDRESS"}
    shell.environment["RAY_API_SERVER_ADDRESS"] = head.dashboard_address
    return shell


def job_of(folder: Path, drawn: Path, name: str, num_steps: int = 40) -> str:
    changes = {"epochs": num_steps * 8 / 64, "evaluation": {"every_epochs": 1000.0}}
    return str(write_job(folder, drawn, name=name, storage=str(folder / "runs"), **changes))


class Relay:
    """Passes connections on to a port, until it is cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: list[socket.socket] = []
        self._cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()

    def cut(self) -> None:
        """Break every connection and take no new one."""
        self._cut.set()
        for end in self._open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def mend(self) -> None:
        """Take connections again."""
        self._cut.clear()

    def close(self) -> None:
        """End it."""
        self.cut()
        self._listener.close()


def test_a_job_is_followed_over_a_broken_connection_and_ends_with_its_exit_code(
    sender: Shell, drawn: Path, head: LocalCluster
) -> None:
    job = job_of(sender.folder, drawn, "followed", num_steps=600)
    run = sender.folder / "runs" / "followed"
    relay = Relay(int(head.dashboard_address.rpartition(":")[2]))
    with (sender.folder / "shown.txt").open("w") as out, (sender.folder / "warnings.txt").open("w") as warnings:
        follower = subprocess.Popen(
            ["yolofleet", "submit", job, "--follow", "--address", relay.address],
            env=os.environ | sender.environment,
            stdout=out,
            stderr=warnings,
        )
        wait_for(lambda: len(rows(run / "metrics.jsonl")) > 20, PATIENCE_SECONDS, "step 20")
        relay.cut()
        lost = "is lost; trying again"
        wait_for(lambda: lost in (sender.folder / "warnings.txt").read_text(), 60, "the warning")
        time.sleep(5)
        relay.mend()
        assert follower.wait(timeout=PATIENCE_SECONDS) == 0, (sender.folder / "warnings.txt").read_text()
    relay.close()
    (known,) = [entry for entry in json.loads(sender.succeed("jobs", "list", "--json")) if entry["name"] == "followed"]
    shown = (sender.folder / "shown.txt").read_text()
    assert shown == sender.succeed("jobs", "logs", "followed"), "no line is lost, none is there twice"
    assert "done" in shown
    assert (known["status"], known["exit_code"]) == ("SUCCEEDED", 0)
    again = sender.run("submit", job, "--follow")
    assert again.returncode == 0
    assert "this run is finished already; nothing was done" in again.stdout


def test_a_job_that_is_stopped_has_saved_its_step_and_goes_on_when_it_is_sent_again(sender: Shell, drawn: Path) -> None:
    num_steps = 2000
    job = job_of(sender.folder, drawn, "stopped", num_steps)
    run = sender.folder / "runs" / "stopped"
    sender.succeed("submit", job)
    wait_for(lambda: len(rows(run / "metrics.jsonl")) > 20, PATIENCE_SECONDS, "step 20")
    again = sender.run("submit", job)
    assert again.returncode == 0 and "already exists, running" in again.stderr
    other = sender.run("submit", job, "epochs=1")
    assert other.returncode == 2 and "with another spec" in other.stderr
    assert "stopped" in sender.succeed("jobs", "stop", "stopped", timeout_seconds=PATIENCE_SECONDS)
    last = max(row["step"] for row in rows(run / "metrics.jsonl"))
    assert last < num_steps
    assert (run / f"checkpoints/step-{last}/COMMITTED").exists(), "the step that it was in is saved"
    process = sender.start("submit", job, "--follow")
    wait_for(
        lambda: [row for row in rows(run / "events.jsonl") if row["kind"] == "start"][1:], PATIENCE_SECONDS, "a start"
    )
    assert [row["step"] for row in rows(run / "events.jsonl") if row["kind"] == "start"] == [0, last]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "no longer followed; the job still runs" in sender.output()
    assert json.loads(sender.succeed("jobs", "show", "stopped", "--json"))["status"] == "RUNNING"
    sender.succeed("jobs", "stop", "stopped", timeout_seconds=PATIENCE_SECONDS)
    seen = digests(run)
    assert len(seen) == 2 * (max(step for step, _ in seen) + 1)


def test_a_run_is_listed_searched_by_rank_evaluated_and_sent_again(sender: Shell, drawn: Path) -> None:
    job = job_of(sender.folder, drawn, "listed", num_steps=16)
    run = sender.folder / "runs" / "listed"
    assert sender.run("submit", job, "--follow", timeout_seconds=PATIENCE_SECONDS).returncode == 0
    (entry,) = json.loads(sender.succeed("jobs", "list", "--name", "listed", "--json"))
    assert (entry["state"], entry["user"], entry["host"]) == ("SUCCEEDED", getpass.getuser(), socket.gethostname())
    assert (entry["run"]["step"], entry["run"]["planned_steps"]) == (16, 16) and entry["run"]["ap"] is not None
    (placed,) = [row for row in rows(run / "events.driver.jsonl") if row["kind"] == "workers"]
    assert len(placed["processes"]) == 2
    ranks = {line.split(":")[0] for line in sender.succeed("jobs", "logs", "listed", "--rank", "all").splitlines()}
    assert ranks == {"rank 0", "rank 1"}
    said = sender.succeed("jobs", "logs", "listed", "--rank", "1").splitlines()
    assert said and not any(line.startswith((":job_id:", "rank ")) for line in said)
    assert sender.succeed("jobs", "logs", "listed", "--rank", "1", "--tail", "1").splitlines() == said[-1:]
    assert sender.run("jobs", "logs", "listed", "--rank", "2").returncode == 2

    out = sender.folder / "out"
    words = ["evaluate", str(run), str(drawn / "shards/val"), "--report", str(out), "--results", f"{out}/boxes.json"]
    done = sender.run("submit", *words, "--follow", timeout_seconds=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in out.iterdir()} >= {"index.html", "boxes.json"}
    missing = sender.run("submit", "evaluate", "/nowhere", str(drawn / "shards/val"), "--follow")
    assert missing.returncode == 2 and "there is no such file or folder" in missing.stdout, missing.stdout

    again = sender.run("jobs", "retry", "listed", "--follow", timeout_seconds=PATIENCE_SECONDS)
    assert again.returncode == 0 and "this run is finished already" in again.stdout, again.stderr
    assert sender.run("jobs", "wait", "listed").returncode == 0
    sender.succeed("jobs", "delete", "listed")
    left = [job["name"] for job in json.loads(sender.succeed("jobs", "list", "--json"))]
    assert left.count("listed") == 1, "the first of the two"
    (stored,) = json.loads(sender.succeed("runs", "list", str(run.parent), "--json"))
    assert (stored["name"], stored["state"], stored["step"]) == ("listed", "FINISHED", 16)


def test_what_cannot_be_is_refused_with_the_cure(sender: Shell, drawn: Path, head: LocalCluster) -> None:
    job = job_of(sender.folder, drawn, "refused")
    failed = sender.run("submit", job, "data.train=/nowhere", "--follow")
    assert failed.returncode == 2 and "/nowhere" in failed.stdout
    lost = sender.run("submit", job, "storage=s3://nobody-has-this/runs", "--follow")
    assert lost.returncode == 2 and "s3://nobody-has-this/runs" in lost.stdout, lost.stdout
    token = sender.environment.pop("RAY_AUTH_TOKEN")
    wrong = Shell(sender.folder, sender.environment | {"RAY_AUTH_TOKEN": "0" * 64}).run("submit", job)
    assert wrong.returncode == 2 and "set RAY_AUTH_TOKEN" in wrong.stderr, wrong.stderr
    sender.environment["RAY_AUTH_TOKEN"] = token
    dead = sender.run("submit", job, "--address", "http://127.0.0.1:9")
    assert dead.returncode == 2 and "no Ray cluster answers there" in dead.stderr, dead.stderr
    for name in ("show", "logs", "stop"):
        missing = sender.run("jobs", name, "never-sent")
        assert missing.returncode == 2 and "no such job" in missing.stderr
    canary = "canary-3f9a"
    secret = sender.run("submit", job, f"tracking.uri=http://me:{canary}@mlflow:5000")
    assert secret.returncode == 2 and "holds a secret" in secret.stderr and canary not in secret.stderr


def test_other_versions_on_the_cluster_are_refused_before_anything_runs(sender: Shell, drawn: Path) -> None:
    job = job_of(sender.folder, drawn, "versions")
    code = (
        "import sys\n"
        "from yolofleet.cluster import bundle\n"
        "real = bundle.installed_versions\n"
        "bundle.installed_versions = lambda: real() | {'torch': '9.9.9'}\n"
        "from yolofleet.cli.main import main\n"
        "sys.exit(main(['submit', *sys.argv[1:]]))\n"
    )
    command = [sys.executable, "-c", code, job, "--follow"]
    done = subprocess.run(
        command, env=os.environ | sender.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "torch: 9.9.9 where the job was sent from" in done.stdout
    assert not (sender.folder / "runs").exists()
