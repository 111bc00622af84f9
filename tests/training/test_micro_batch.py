"""``micro_batch_size: auto`` under a limit of memory, and the plan of a run."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolofleet.cli.train_plan import plan_lines, plan_run
from yolofleet.core.errors import UserError
from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup import micro_batch
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_worker

MakeJob = Callable[..., JobSpec]
CHOOSE = """
import json, sys
from yolofleet.specs.job import JobSpec
from yolofleet.training.setup.preflight import check_job
ready = check_job(JobSpec.parse(json.load(sys.stdin), source="job"))
print(json.dumps([ready.job.micro_batch_size, *ready.notes[-1:]]))
"""


def sizes(limit: int | None, job: JobSpec) -> Any:
    """Return what a process that may take so much address space chooses."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", CHOOSE],
        input=json.dumps(job.document()),
        capture_output=True,
        text=True,
        preexec_fn=limited,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_ARENA_MAX": "2"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7", "yolor-csp", "yolov4"])
def test_under_a_limit_the_largest_that_fits_is_chosen(
    name: str, small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # the address space of arenas differs from run to run
    model = {"name": name, "transition_width": 0.5}
    job = small_job(model=model, micro_batch_size="auto", global_batch_size=32)
    job = job.model_copy(update={"data": job.data.model_copy(update={"image_size": 320, "loader_threads": 1})})
    taken = {size: micro_batch._take_steps(job, size, 32) for size in (8, 16)}
    needed = {size: found["address_space"] for size, found in taken.items() if found is not None}
    limit = int((needed[8] + needed[16]) / 2 / micro_batch.SAFE_SHARE)
    assert sizes(limit, job)[0] == 8
    kept = JobSpec.load(Path(job.storage, job.name, "job.yaml"))
    assert kept.micro_batch_size == 8 and kept.global_batch_size == 32
    assert sizes(None, job)[0] == 8, "a later start uses the same, whatever it might take"


@pytest.fixture
def known_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine where a worker takes 100 MB and 10 MB for each image; returns the sizes that were tried."""
    tried: list[int] = []

    def take_steps(job: JobSpec, size: int, num_samples: int) -> dict[str, int]:
        tried.append(size)
        return dict.fromkeys(("device", "address_space", "resident"), 100_000_000 + 10_000_000 * size)

    rooms = {"free memory": 10**10, "a cgroup": 185_000_000}
    limits = [micro_batch.Limit(name, "resident", room) for name, room in rooms.items()]
    monkeypatch.setattr(micro_batch, "memory_limits", lambda job: limits)
    monkeypatch.setattr(micro_batch, "_take_steps", take_steps)
    return tried


def test_the_size_is_found_once_and_kept(small_job: MakeJob, known_memory: list[int]) -> None:
    job = small_job(micro_batch_size="auto", global_batch_size=24)
    ready = check_job(job)
    assert ready.job.micro_batch_size == 6, "7.5 images fit, and 24 is a multiple of 6"
    assert "the limit is 185 MB of a cgroup" in ready.notes[-1]
    assert check_job(job).job == ready.job and check_job(ready.job).changes == ()
    assert len(known_memory) == len(set(known_memory))
    with pytest.raises(UserError, match="micro_batch_size"):
        check_job(small_job(micro_batch_size=4, global_batch_size=24))


def test_the_size_leaves_every_worker_its_micro_batch(small_job: MakeJob, known_memory: list[int]) -> None:
    ready = check_job(small_job(micro_batch_size="auto", global_batch_size=16, cluster={"workers": 4}))
    assert ready.job.micro_batch_size == 4
    with pytest.raises(UserError, match="8 workers"):
        check_job(small_job(name="many", micro_batch_size="auto", global_batch_size=4, cluster={"workers": 8}))


def test_where_no_run_decides_a_number_is_asked_for(small_job: MakeJob) -> None:
    with pytest.raises(UserError, match="micro_batch_size=N"):
        _ = small_job(micro_batch_size="auto").num_micro_batches


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_plan_writes_nothing_and_says_what_the_run_then_does(
    small_job: MakeJob, tmp_path: Path, known_memory: list[int]
) -> None:
    job = small_job(epochs=1.5, micro_batch_size="auto", evaluation={"every_epochs": 0.5})
    before = files(tmp_path)
    plan = plan_run(job, None)
    assert files(tmp_path) == before and known_memory == []
    assert plan["not_checked"] == []
    unseen = plan_run(small_job(initial_weights="/nowhere.pt"), "http://127.0.0.1:1")
    assert [line.partition(": ")[0] for line in unseen["not_checked"]] == ["/nowhere.pt", "http://127.0.0.1:1"]
    ready = check_job(job)
    run_worker(ready.job, WorkerGroup())
    rows = ready.run.metrics()
    rates = {row["step"] - 1: row["learning_rate"] for row in rows if "loss" in row}
    assert plan["steps"] == len(rates) == 6 and plan["done_steps"] == 0
    assert plan["evaluations"] == sum("val_AP" in row for row in rows)
    assert all(entry["learning_rate"] == pytest.approx(rates[entry["step"]]) for entry in plan["learning_rate"])
    assert plan["images_per_second"] is None and plan["hours"] is None
    before = files(tmp_path)
    after = plan_run(job, None)
    assert files(tmp_path) == before
    assert after["finished"] and after["evaluations"] == 0 and after["hours"] == 0
    three: dict[str, Any] = {"epochs": 3, "micro_batch_size": "auto", "evaluation": {"every_epochs": 0.5}}
    priced = plan_run(small_job(cluster={"price_per_hour": 3600.0 * 100}, **three), None)
    assert priced["cost"] == pytest.approx(100 * 6 * 8 / priced["images_per_second"], rel=0.01)
    assert f"for {priced['cost']:.2f}" in "\n".join(plan_lines(priced))
    longer = plan_run(small_job(**three), None)
    assert longer["cost"] is None
    assert files(tmp_path) == before
    assert (longer["done_steps"], longer["steps"], longer["finished"]) == (6, 12, False)
    assert longer["hours"] > 0 and "epochs: was 1.5, now 3.0" in longer["changes"]
    text = "\n".join(plan_lines(longer))
    assert "12 (3 epochs of 4.0), 6 of them done" in text and "steps 1 to 6: they are done" in text
    assert str(tmp_path / "runs") in text
