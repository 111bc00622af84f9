from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from yolofleet.core.cores import num_cores
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.setup import worker_cpus
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.setup.worker_cpus import choose_cpus, with_cpus

MakeJob = Callable[..., JobSpec]


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have eight cores, and neither a cluster nor a limit of threads."""
    monkeypatch.setattr(worker_cpus, "num_cores", lambda: 8)
    for name in ("OMP_NUM_THREADS", "RAY_ADDRESS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def cpus(job: JobSpec, **where: str) -> float:
    return with_cpus(job, **where).cluster.worker_cpus  # type: ignore[arg-type]


def test_workers_of_one_machine_share_its_cores(small_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpus(small_job()) == 8
    assert cpus(small_job(cluster={"workers": [1, 2]})) == 4, "there is room for the most workers"
    assert cpus(small_job(cluster={"workers": 1, "evaluation": "apart"})) == 4, "and for the evaluation beside them"
    assert choose_cpus(small_job(), 2, 4, None) == 1, "less than a core is refused with what is missing, as ever"
    assert cpus(small_job(cluster={"cpus_per_worker": 0.5})) == 0.5
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpus(small_job()) == 3


def test_one_process_takes_all_cores_and_those_of_torchrun_share_them(
    small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    job = small_job(cluster={"workers": 2})
    assert cpus(job, launcher="process") == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpus(job, launcher="process") == 4


def test_a_cluster_that_is_others_too_gives_one_core_unless_asked_for_more(
    small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cpus(small_job()) == 1
    assert cpus(small_job(cluster={"cpus_per_worker": 6})) == 6


def test_a_worker_with_a_gpu_gets_what_its_loader_works_with(small_job: MakeJob) -> None:
    job = small_job(cluster={"gpus_per_worker": 1})
    job = job.model_copy(update={"data": job.data.model_copy(update={"loader_threads": 5})})
    assert choose_cpus(job, None, 1, "1") == 6, "on a cluster; OMP_NUM_THREADS is for computing"
    assert choose_cpus(job, 16, 4, None) == 4, "this machine has no more"


def test_a_run_keeps_its_number_where_the_cores_suffice(small_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run = check_job(with_cpus(small_job())).run
    monkeypatch.setattr(worker_cpus, "num_cores", lambda: 16)
    again = with_cpus(small_job(), run)
    assert again.cluster.worker_cpus == 8
    assert check_job(again).changes == ()
    monkeypatch.setattr(worker_cpus, "num_cores", lambda: 4)
    assert check_job(with_cpus(small_job(), run)).changes == ("cluster.cpus_per_worker: was 8.0, now 4.0",)
    assert with_cpus(small_job(cluster={"cpus_per_worker": 2}), run).cluster.worker_cpus == 2


@pytest.mark.parametrize("text", ["", "name: x", "cluster: {cpus_per_worker: [1]}"])
def test_a_damaged_job_of_a_run_decides_nothing(small_job: MakeJob, tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    assert with_cpus(small_job(), RunDirectory(open_storage(tmp_path))).cluster.worker_cpus == 8


def test_cores_are_those_that_this_process_may_use(tmp_path: Path) -> None:
    bound = os.sched_getaffinity(0)
    assert num_cores(tmp_path) == len(bound)
    os.sched_setaffinity(0, {min(bound)})
    try:
        assert num_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, bound)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert num_cores(tmp_path) == len(bound)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert num_cores(tmp_path) == 1
    first = tmp_path / "first" / "cpu"
    first.mkdir(parents=True)
    (first / "cpu.cfs_quota_us").write_text("90000\n")
    (first / "cpu.cfs_period_us").write_text("100000\n")
    assert num_cores(tmp_path / "first") == 1
