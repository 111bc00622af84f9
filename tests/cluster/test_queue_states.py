"""Jobs that share a cluster: what the list shows of one that waits, and nobody is starved, charged or overtaken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.fake_jobs import FakeJobs, fake_jobs
from cluster.local_cluster import LocalCluster
from system.shell import Shell, rows, wait_for, write_job
from yolofleet.cli.main import main
from yolofleet.cluster.service import JobService, waiting_reason
from yolofleet.training.supervision.admission import ADMITTED, SENT_VARIABLE, USER_VARIABLE, WAITING

PATIENCE_SECONDS = 900.0


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("training 40 steps\n", None),
        (f"training 40 steps\n{WAITING}it needs 2\n", "it needs 2"),
        (f"{WAITING}it needs 2\n{WAITING}it needs 2, 1 free\nnode joined\n", "it needs 2, 1 free"),
        (f"{WAITING}it needs 2\n{ADMITTED}waited 3 s\nstep 1\n", None),
        (f"{ADMITTED}waited 3 s\nfailure\n{WAITING}again\n", "again"),
    ],
)
def test_the_last_word_of_a_driver_says_whether_it_waits(output: str, reason: str | None) -> None:
    assert waiting_reason(output) == reason


@pytest.fixture
def jobs() -> Iterator[FakeJobs]:
    with fake_jobs() as made:
        yield made


def test_a_job_that_waits_is_listed_as_such_with_its_reason(
    jobs: FakeJobs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", jobs.address)
    for name in ("trains", "waits", "ended"):
        metadata = {"name": name, "digest": "d", "kind": "train"}
        jobs.requests.append({"submission_id": f"id-{name}", "entrypoint": "", "metadata": metadata, "runtime_env": {}})
    jobs.output = {"id-trains": "step 1\n", "id-waits": f"{WAITING}it needs 2 slots; held by trains of ada (2)\n"}
    assert main(["jobs", "list"]) == 0
    _, trains, waits, reason, ended = capsys.readouterr().out.splitlines()
    assert trains.startswith("RUNNING ") and waits.startswith("WAITING ") and ended.startswith("RUNNING ")
    assert reason.strip() == "it needs 2 slots; held by trains of ada (2)"
    assert main(["jobs", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["waiting"] for entry in listed] == [None, "it needs 2 slots; held by trains of ada (2)", None]


def test_a_job_is_sent_with_its_sender_and_the_time(
    jobs: FakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolofleet.cluster.bundle import Bundle

    monkeypatch.setenv(USER_VARIABLE, "eve")
    JobService(jobs.address).send(Bundle("train", "small", {"name": "small"}))
    (sent,) = jobs.requests
    variables = sent["runtime_env"]["env_vars"]
    assert variables[USER_VARIABLE] == "eve" and float(variables[SENT_VARIABLE]) > 1e9


@pytest.mark.system
@pytest.mark.slow
def test_tickets_on_a_real_ray_wait_for_what_is_granted_placed_or_between_two_groups(tmp_path: Path) -> None:
    script, out = Path(__file__).with_name("queue_on_ray.py"), tmp_path / "found.json"
    environment = os.environ | {"YOLOFLEET_QUOTAS": str(tmp_path / "quotas.yaml"), USER_VARIABLE: "bob"}
    done = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, timeout=550, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    waiting = "it needs 2 slots of 1 CPU, 1 free; held by first of bob (2)"
    assert json.loads(out.read_text()) == {
        "first_holds": 2,
        "before_it_is_placed": 0,
        "beside_it": waiting,
        "just_after_the_queue_was_lost": None,
        "when_it_knows_all_again": waiting,
        "priority": 1,
        "quota": True,
        "between_two_groups": 0,
        "when_it_has_left": 2,
    }


@pytest.fixture
def head(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster of three CPUs with a quota, that answers to the Jobs API."""
    quotas = tmp_path / "quotas.yaml"
    quotas.write_text("projects: {birds: {cpus: 1}}\n")
    made = LocalCluster(tmp_path, head_cpus=3, dashboard=True, settings={"YOLOFLEET_QUOTAS": str(quotas)})
    yield made
    made.close()


def kinds(run: Path) -> list[str]:
    """The kinds of a run's events of its driver, in order."""
    return [row["kind"] for row in rows(run / "events.driver.jsonl")]


def times(run: Path, log: str, kind: str) -> list[str]:
    """When events of a kind were written."""
    return [row["time"] for row in rows(run / log) if row["kind"] == kind]


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_jobs_and_a_search_share_three_cpus(shell: Shell, drawn: Path, head: LocalCluster) -> None:
    shell.environment = {key: value for key, value in head.environment.items() if key != "RAY_ADDRESS"}
    shell.environment |= {"RAY_API_SERVER_ADDRESS": head.dashboard_address, USER_VARIABLE: "ada"}
    runs = shell.folder / "runs"

    def send(name: str, **changes: Any) -> None:
        job = write_job(shell.folder, drawn, name=name, storage=str(runs), record_samples=False, **changes)
        shell.succeed("submit", str(job), timeout_seconds=PATIENCE_SECONDS)

    def states() -> dict[str, str | None]:
        listed = json.loads(shell.succeed("jobs", "list", "--json", timeout_seconds=PATIENCE_SECONDS))
        return {job["name"]: job["waiting"] or job["status"] for job in listed}

    send("first", cluster__workers=2, epochs=10_000)
    wait_for(lambda: rows(runs / "first/metrics.jsonl"), PATIENCE_SECONDS, "the first step of the first job")
    send("second", cluster__workers=2, epochs=0.5)
    wait_for(lambda: "waiting" in kinds(runs / "second"), PATIENCE_SECONDS, "the second job's waiting")
    base = write_job(shell.folder, drawn, name="base", storage=str(runs), cluster__workers=1, epochs=0.5)
    job = yaml.safe_load(base.read_text())
    job["cluster"]["project"] = "birds"
    base.write_text(yaml.safe_dump(job))
    space = {
        "name": "space",
        "job": base.name,
        "parameters": {"hyperparameters.lr0": {"log_uniform": [0.001, 0.01]}},
        "algorithm": {"name": "quasi_random"},
        "budget": {"trials": 2},
    }
    (shell.folder / "space.yaml").write_text(yaml.safe_dump(space))
    shell.succeed("submit", "space.yaml", timeout_seconds=PATIENCE_SECONDS)
    wait_for(lambda: times(runs / "space", "events.jsonl", "waiting"), PATIENCE_SECONDS, "the search's waiting")
    send("third", cluster__workers=1, cluster__priority=5, epochs=0.5)
    send("greedy", cluster__workers=2, cluster__project="birds", epochs=0.5)

    wait_for(lambda: states()["third"] == "SUCCEEDED", PATIENCE_SECONDS, "the end of the one with a priority")
    shown = shell.succeed("jobs", "list", timeout_seconds=PATIENCE_SECONDS)
    now = states()
    assert "it needs 2 slots of 1 CPU, 1 free; held by first of ada (2)" in str(now["second"])
    assert "before it second of ada" in str(now["space"])
    assert shown.count("WAITING") == 2 and now["first"] == "RUNNING", shown
    assert not times(runs / "second", "events.driver.jsonl", "starting"), "it waits as long as it takes"

    shell.succeed("jobs", "stop", "first", timeout_seconds=PATIENCE_SECONDS)
    wait_for(lambda: {states()[name] for name in ("second", "space")} == {"SUCCEEDED"}, PATIENCE_SECONDS, "their ends")
    for name in ("first", "second", "third"):
        assert "failure" not in kinds(runs / name), f"{name} was charged"
    assert kinds(runs / "second").count("starting") == 1
    assert [kind for kind in kinds(runs / "second") if kind in ("waiting", "admitted")][-1] == "admitted"
    trials = [runs / "space/trials" / name for name in ("0000", "0001")]
    begins = [times(trial, "events.jsonl", "start")[0] for trial in trials]
    ends = [times(trial, "events.jsonl", "end")[-1] for trial in trials]
    (room,) = times(runs / "first", "events.jsonl", "left")
    assert min(begins) > room, "there was a CPU for it all the time, and the second job, which came first, needed two"
    assert times(runs / "second", "events.driver.jsonl", "admitted")[0] > room
    assert max(begins) > min(ends), "its project may have one CPU at once"
    (greedy,) = [job for job in json.loads(shell.succeed("jobs", "list", "--json")) if job["name"] == "greedy"]
    assert greedy["exit_code"] == 2
    assert "project birds has" in shell.succeed("jobs", "logs", "greedy")
    assert os.path.getsize(runs / "second/events.driver.jsonl") < 20_000, "it notes changes only"
