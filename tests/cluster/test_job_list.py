"""Jobs of a cluster: who sent them, how far they are, which are shown, sending them again, what workers printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.fake_jobs import FakeJobs, fake_jobs
from yolofleet.cli.main import main
from yolofleet.cluster.bundle import COMMANDS, command_bundle, sent_command
from yolofleet.cluster.job_list import JobFilter, list_jobs
from yolofleet.cluster.sent_job import MOST_SPEC_CHARACTERS, SentJob, bundle_of, metadata_of
from yolofleet.cluster.service import ANYWAY
from yolofleet.cluster.worker_logs import find_workers, placed_workers
from yolofleet.core.errors import UserError
from yolofleet.tracking.json_lines import encode_row

JOB = {
    "name": "shapes",
    "model": {"name": "yolov7-tiny"},
    "data": {"train": "s3://data/train", "val": "s3://data/val"},
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("USER", "anna")
    monkeypatch.setenv("LOGNAME", "anna")
    with fake_jobs() as jobs:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", jobs.address)
        yield jobs


def send(folder: Path, name: str, **changes: Any) -> Path:
    """Send a run whose directory lies in a folder; returns that directory."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(JOB | {"name": name, "storage": str(folder / "runs")} | changes))
    assert main(["submit", str(file)]) == 0
    return folder / "runs" / name


def write_events(run: Path, *kinds: str, **fields: Any) -> None:
    run.mkdir(parents=True, exist_ok=True)
    event = {"time": "2026-01-01T00:00:00.000Z", "step": 0, "num_steps": 1200, "reason": "x", **fields}
    (run / "events.jsonl").write_bytes(b"".join(encode_row(event | {"kind": kind}) for kind in kinds))


def test_a_list_says_who_where_and_how_far_in_80_columns(
    cluster: FakeJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = send(tmp_path, "n" * 90)
    write_events(run, "start")
    row = {"time": "2026-01-01T00:01:00.000Z", "step": 300, "val_AP": 0.3125}
    (run / "metrics.jsonl").write_bytes(
        encode_row(row | {"time": "2026-01-01T00:00:01.000Z", "step": 5}) + encode_row(row)
    )
    write_events(send(tmp_path, "waits"), "waiting")
    capsys.readouterr()
    assert main(["jobs", "list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["STATE", "NAME", "FROM", "AGE", "STEP", "ETA", "AP", "COST"]
    assert max(map(len, [head, *lines])) <= 80
    found = {line.split()[0]: line.split() for line in lines}
    assert found["RUNNING"][2].startswith("anna@") and found["RUNNING"][4] == "300/1200"
    assert found["RUNNING"][6] == "0.312" and "WAITING" in found
    assert main(["jobs", "list", "--state", "waiting", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["user"], entry["status"]) == ("waits", "anna", "RUNNING")
    assert main(["jobs", "list", "--user", "bob"]) == 0
    assert "no such job is there" in capsys.readouterr().out
    assert main(["jobs", "show", "waits"]) == 0
    assert "sent by   anna on " in capsys.readouterr().out


def jobs_of(*names: str, status: str = "SUCCEEDED") -> list[SentJob]:
    plain = SentJob("", "", "d", status, 0, "", 0.0, 1.0)
    return [replace(plain, id=f"y-{n}", name=name, user="anna", began=float(n)) for n, name in enumerate(names)]


def test_pages_and_filters() -> None:
    jobs = jobs_of("a", "b", "a", "c", "a")
    shown, num_found = list_jobs(jobs, JobFilter(name="a"), page=1, limit=2)
    assert ([entry.job.id for entry in shown], num_found) == (["y-4", "y-2"], 3)
    shown, _ = list_jobs(jobs, JobFilter(name="a"), page=2, limit=2)
    assert [entry.job.id for entry in shown] == ["y-0"]
    assert list_jobs(jobs, JobFilter(name="y-[13]"), page=1, limit=9)[1] == 2
    assert list_jobs(jobs, JobFilter(user="bob"), page=1, limit=9) == ([], 0)
    assert list_jobs(jobs, JobFilter(states=frozenset({"FAILED"})), page=1, limit=9) == ([], 0)


def test_only_the_newest_job_of_a_run_has_its_figures(tmp_path: Path) -> None:
    write_events(tmp_path / "a", "start")
    first, second = (replace(job, directory=str(tmp_path / "a")) for job in jobs_of("a", "a"))
    shown, _ = list_jobs([first, second], JobFilter(), page=1, limit=9)
    assert [(entry.job.id, entry.figures is not None) for entry in shown] == [("y-1", True), ("y-0", False)]


def test_a_run_directory_that_cannot_be_read_is_named_and_the_job_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "events.jsonl").mkdir()
    (job,) = jobs_of("a")
    ((entry,), _) = list_jobs([replace(job, directory=str(tmp_path / "a"))], JobFilter(), page=1, limit=9)
    assert entry.figures is not None and entry.figures.state == "UNKNOWN" and entry.figures.problem


def test_an_ended_job_is_sent_again_as_it_was_and_a_running_one_is_not(
    cluster: FakeJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    send(tmp_path, "again", epochs=7)
    assert main(["jobs", "retry", "again"]) == 2
    assert "only a job that has ended is sent again" in capsys.readouterr().err
    cluster.end("again", "FAILED", 1)
    assert main(["jobs", "retry", "again"]) == 0
    first, second = (bundle_of("x", request["metadata"]) for request in cluster.requests)
    assert first == second and first.document["epochs"] == 7
    assert cluster.requests[0]["submission_id"] != cluster.requests[1]["submission_id"]
    cluster.end("again", "FAILED", 1)
    del cluster.requests[0]  # as 'jobs delete' does
    assert main(["jobs", "retry", "again", "--any-version"]) == 0
    assert [ANYWAY in request["entrypoint"] for request in cluster.requests] == [False, True]
    assert len({request["submission_id"] for request in cluster.requests}) == len(cluster.requests) == 2


def test_waiting_returns_the_first_exit_code_that_is_not_0(
    cluster: FakeJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        send(tmp_path, name)
    cluster.end("one", "SUCCEEDED", 0)
    assert main(["jobs", "wait", "one"]) == 0
    assert "one-" in capsys.readouterr().out
    assert main(["jobs", "wait", "one", "two", "--timeout-seconds", "0.2"]) == 1
    assert "still not ended" in capsys.readouterr().err
    cluster.end("two", "FAILED", 2)
    cluster.end("three", "STOPPED", None)
    assert main(["jobs", "wait", "one", "three", "two"]) == 1
    assert main(["jobs", "wait", "two", "one"]) == 2
    capsys.readouterr()
    assert main(["jobs", "wait", "two", "three", "--json"]) == 2
    assert [(job["name"], job["status"], job["exit_code"]) for job in json.loads(capsys.readouterr().out)] == [
        ("two", "FAILED", 2),
        ("three", "STOPPED", None),
    ]


def test_only_ended_jobs_are_deleted(
    cluster: FakeJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolofleet.cluster.service.FORGET_SECONDS", 0.0)
    send(tmp_path, "one")
    send(tmp_path, "two")
    cluster.end("one", "FAILED", 1)
    assert main(["jobs", "delete", "one", "two"]) == 2
    assert "two-" in capsys.readouterr().err and len(cluster.requests) == 2
    assert main(["jobs", "delete", "one", "--json"]) == 0
    assert [job["name"] for job in json.loads(capsys.readouterr().out)] == ["one"]
    assert [request["metadata"]["name"] for request in cluster.requests] == ["two"]
    cluster.end("two", "STOPPED", None)
    assert main(["jobs", "stop", "two", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "STOPPED"


def test_a_spec_that_is_too_large_stays_here_and_sending_again_says_what_to_do() -> None:
    bundle = command_bundle(["evaluate", "--", "x" * MOST_SPEC_CHARACTERS, "d"], cpus=1, gpus=0)
    metadata = metadata_of(bundle)
    assert "spec" not in metadata and metadata["kind"] == "command"
    with pytest.raises(UserError, match="send the spec with 'yolofleet submit'"):
        bundle_of("x", metadata)


@pytest.mark.parametrize(
    "metadata", [{}, {"spec": "[]"}, {"spec": "nonsense"}, {"spec": "[{},null]", "kind": "rm", "name": "a"}]
)
def test_strange_metadata_of_another_sender_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(UserError, match="does not have its spec"):
        bundle_of("x", metadata)


def sent_words(cluster: FakeJobs) -> list[str]:
    return list(bundle_of("x", cluster.requests[-1]["metadata"]).document["arguments"])


def test_other_work_is_sent_with_absolute_paths_and_its_resources(
    cluster: FakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["submit", "evaluate", "models:/shapes@champion", "data/val", "--report", "s3://out/r", "--gpus", "1",
                 "--batch-size=4"]) == 0  # fmt: skip
    assert sent_words(cluster) == [
        "evaluate", "--report", "s3://out/r", "--batch-size", "4", "--", "models:/shapes@champion",
        f"{tmp_path}/data/val",
    ]  # fmt: skip
    assert cluster.requests[-1]["entrypoint_num_gpus"] == 1.0 and cluster.requests[-1]["entrypoint_num_cpus"] == 1.0
    assert cluster.requests[-1]["metadata"]["name"].startswith("evaluate-")
    assert main(["submit", "data", "shard", "a.json", "-", "s3://out/d", "--no-shuffle"]) == 0
    assert sent_words(cluster) == ["data", "shard", "--no-shuffle", "--", f"{tmp_path}/a.json", "-", "s3://out/d"]
    assert main(["submit", "registry", "verify", "shapes@champion", "--strict", "--job-name", "nightly"]) == 0
    assert sent_words(cluster) == ["registry", "verify", "--strict", "--", "shapes@champion"]
    assert cluster.requests[-1]["metadata"]["name"] == "nightly"
    assert main(["submit", "predict", "s3://m", "s3://d", "--workers", "4", "--out", "s3://o"]) == 0
    assert not cluster.requests[-1].get("entrypoint_num_cpus"), "its workers count by themselves"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "m", "d", "--report", "here"], "--report here: would stay on the node"),
        (["predict", "m", "a.jpg"], "--out predictions: would stay on the node"),
        (["export", "m", "model.onnx"], "OUT model.onnx: would stay on the node"),
        (["evaluate", "m", "d", "--no-such"], "No such option"),
        (["evaluate", "m"], "Missing argument 'DATA'"),
        (["registry", "promote", "shapes"], "is neither a file nor a command that can be sent"),
        (["job.yaml", "--gpus", "1"], "--gpus is for commands"),
        (["job.yaml", "--folow"], "no such option: --folow; did you mean '--follow'?"),
        (["evaluate", "m", "d", "--tracking-uri", "http://me:canary-9@host"], "holds a secret"),
        (["evaluate", "http://me:canary-9@host/m", "d"], "holds a secret"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is(
    words: list[str], said: str, cluster: FakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(yaml.safe_dump(JOB | {"storage": "s3://runs"}))
    assert main(["submit", *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed and "canary" not in printed
    assert cluster.requests == []


def test_every_command_that_can_be_sent_says_which_files_it_names() -> None:
    import typer

    from yolofleet.cli.commands import app
    from yolofleet.cli.submit import PATHS

    assert set(PATHS) == set(COMMANDS)
    for command, paths in PATHS.items():
        parser: Any = typer.main.get_command(app)
        for part in command:
            parser = parser.commands[part]
        assert {*paths.read, *paths.written} <= {parameter.name for parameter in parser.params}, command
    assert sent_command(["data", "shard", "x"]) == ("data", "shard") and sent_command(["data"]) is None


def test_the_ranks_are_those_of_the_newest_start(tmp_path: Path) -> None:
    assert placed_workers([{"kind": "start"}]) == []
    old = {"kind": "workers", "nodes": ["n0"], "hosts": ["10.0.0.1"], "processes": [[5, 0]]}
    new = {"kind": "workers", "nodes": ["n1", "n2"], "hosts": ["h1", "h2"], "processes": [[7, 1], [8, 0], [9, 1]]}
    (tmp_path / "events.driver.jsonl").write_bytes(encode_row(old) + encode_row(new))
    workers = find_workers(str(tmp_path), None)
    assert [(worker.rank, worker.process, worker.node, worker.host) for worker in workers] == [
        (0, 7, "n2", "h2"), (1, 8, "n1", "h1"), (2, 9, "n2", "h2"),
    ]  # fmt: skip
    assert find_workers(str(tmp_path), 1) == [workers[1]]
    with pytest.raises(UserError, match="has ranks 0 to 2"):
        find_workers(str(tmp_path), 3)
    with pytest.raises(UserError, match="does not say where its workers ran"):
        find_workers(str(tmp_path / "absent"), 0)
    with pytest.raises(UserError, match="only a run has workers"):
        find_workers(None, 0)


def test_output_is_searched_by_text_and_by_rank(
    cluster: FakeJobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = send(tmp_path, "talks")
    output = "step 1: loss 0.1\nwarning: slow [disk]\nstep 2: loss 0.2\n"
    cluster.output[cluster.requests[-1]["submission_id"]] = output
    cluster.worker_output = {("n0", "7", "out"): "hello\n", ("n1", "8", "err"): ":job_id:01\nNCCL error\nbye\n"}
    placed = {"kind": "workers", "nodes": ["n0", "n1"], "hosts": ["a", "b"], "processes": [[7, 0], [8, 1]]}
    run.mkdir(parents=True)
    (run / "events.driver.jsonl").write_bytes(encode_row(placed))
    capsys.readouterr()

    def printed(*options: str) -> str:
        assert main(["jobs", "logs", "talks", *options]) == 0
        return capsys.readouterr().out

    assert printed() == output
    assert printed("--grep", "[disk]") == "warning: slow [disk]\n"
    assert printed("--tail", "1") == "step 2: loss 0.2\n"
    assert printed("--rank", "1") == "NCCL error\nbye\n"
    assert printed("--rank", "all", "--grep", "e") == "rank 0: hello\nrank 1: NCCL error\nrank 1: bye\n"
    document = json.loads(printed("--json", "--grep", "step"))
    assert (document["name"], document["lines"]) == ("talks", ["step 1: loss 0.1", "step 2: loss 0.2"])
    for command in (["jobs", "logs", "talks"], ["jobs", "retry", "talks"], ["submit", "job.yaml"]):
        assert main([*command, "--follow", "--json"]) == 2
    assert main(["jobs", "logs", "talks", "--rank", "first"]) == 2
    cluster.worker_output = {}
    assert main(["jobs", "logs", "talks", "--rank", "0"]) == 1
    assert "its files are lost" in capsys.readouterr().err
