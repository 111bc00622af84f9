from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.worker_progress import WorkerProgress
from yolofleet.training.metrics.publisher import METRICS, Publisher, Reading, run_readings, worker_readings
from yolofleet.training.supervision.heartbeats import WorkerStatus

GIGABYTE = 10**9


def job(tmp_path: Path | str = "runs", **changes: Any) -> JobSpec:
    document: dict[str, Any] = {
        "name": "run", "model": {"name": "yolov7-tiny"}, "data": {"train": "t", "val": "v"}, "recipe": "tiny",
        "epochs": 1, "global_batch_size": 64, "micro_batch_size": 4, "storage": str(tmp_path),
    }  # fmt: skip
    return JobSpec.parse(document | changes, source="job")


def worker(rank: int = 0, num_workers: int = 1, **changes: Any) -> WorkerStatus:
    return WorkerStatus(group="g", rank=rank, num_workers=num_workers, process=1, node="n", host="h", **changes)


def values(readings: Any) -> dict[Any, float]:
    return {(reading.name.removeprefix("yolofleet_"), *reading.tags.values()): reading.value for reading in readings}


@given(st.integers(1, 16), st.floats(0.01, 100.0), st.floats(0.0, 1.0))
def test_the_rate_is_that_of_all_workers(workers: int, step_seconds: float, wait: float) -> None:
    figures = {"samples_per_second": 64 / step_seconds, "data_wait_share": wait, "problem": "text is no figure"}
    found = values(worker_readings(job(), 0.0, [worker(num_workers=workers, metrics=figures)]))
    assert found["step_seconds",] == pytest.approx(step_seconds)
    assert found["images_per_second",] == pytest.approx(64 / step_seconds)
    assert found["data_wait_seconds",] == pytest.approx(step_seconds * wait)


def test_worker_readings_are_tagged_by_rank() -> None:
    workers = [
        worker(
            0, 2, step=8, received_at=10.0, silence_seconds=1.0, metrics={"loss": 2.0, "loss_box": 0.5, "val_AP": 0.3}
        ),
        worker(1, 2, step=9, received_at=6.0, gpu_used_bytes=70 * GIGABYTE, gpu_total_bytes=80 * GIGABYTE),
    ]
    found = values(worker_readings(job(), 12.0, workers))
    assert (found["workers",], found["step",], found["average_precision",]) == (2, 8, 0.3)
    assert (found["worker_silence_seconds", "0"], found["worker_silence_seconds", "1"]) == (3.0, 6.0)
    assert found["gpu_memory_used_bytes", "1"] == 70 * GIGABYTE and ("gpu_memory_used_bytes", "0") not in found
    assert (found["loss", "all"], found["loss", "box"]) == (2.0, 0.5)
    assert not any(name[0] in ("step_seconds", "images_per_second") for name in found), "no rate is known yet"


def test_what_holds_a_run_back_is_published_by_stage_and_rank() -> None:
    metrics = {"forward_share": 0.5, "exchange_share": 0.25, "model_flops_utilization": 0.4, "slowest_rank": 3}
    found = values(worker_readings(job(), 0.0, [worker(metrics=metrics | {"slowest_rank_excess": 0.3})]))
    assert (found["stage_share", "forward"], found["stage_share", "exchange"]) == (0.5, 0.25)
    assert found["model_flops_utilization",] == 0.4 and found["slowest_rank_excess", "3"] == 0.3


def test_run_readings_equal_the_report() -> None:
    def event(second: int, kind: str, **fields: Any) -> dict[str, Any]:
        return {"time": f"2026-01-01T00:00:{second:02}.000Z", "kind": kind, **fields}

    events = [
        event(0, "start", num_steps=90, workers=2, gpus_per_worker=4.0, price_per_hour=36.0),
        event(8, "checkpoint", step=10, seconds=0.25),
        event(9, "checkpoint_failed", step=20, reason="disk full"),
        event(10, "failure", failure="worker"),
        event(20, "start", num_steps=90, workers=1, gpus_per_worker=4.0, price_per_hour=36.0),
        event(25, "regained", steps_redone=3, seconds_lost=15.0),
    ]
    found = values(run_readings(events, "2026-01-01T00:00:30.000Z"))
    assert found["goodput",] == 0.5 and found["lost_seconds",] == 15 and found["starts",] == 2
    assert (found["gpu_hours",], found["cost",]) == (round(200 / 3600, 4), 0.5)
    assert found["failures", "worker"] == 1 and found["failures", "preemption"] == 0
    assert (found["checkpoint_step",], found["checkpoint_seconds",], found["planned_steps",]) == (10, 0.25, 90)
    assert found["checkpoint_troubles", "failed"] == 1 and found["checkpoint_troubles", "skipped"] == 0
    assert ("goodput",) not in values(run_readings([], "2026-01-01T00:00:30.000Z"))


def test_worker_progress_keeps_the_newest_of_every_figure() -> None:
    progress = WorkerProgress()
    progress.report({"step": 1, "loss": 3.0})
    before = progress.metrics
    progress.report({"step": 2, "val_AP": 0.5})
    assert progress.metrics == {"step": 2, "loss": 3.0, "val_AP": 0.5}
    assert before == {"step": 1, "loss": 3.0}, "who reads it in another thread sees no half of the next"


class Board:
    """Gauges as whoever scrapes them sees them."""

    def __init__(self) -> None:
        self.shown: dict[Any, float] = {}

    def set(self, reading: Reading) -> None:
        _, tags = METRICS[reading.name]
        assert tuple(reading.tags) == tags, reading
        self.shown.update(values([reading]))


def test_a_publisher_withdraws_what_is_gone_and_shows_the_age_of_the_last_step(tmp_path: Path) -> None:
    clock, workers = [100.0], [worker(0, 2, step=5), worker(1, 2, step=5)]
    board = Board()
    with RunDirectory.open(tmp_path, "run") as run:
        run.append_event("start", step=0, num_steps=50)
        publisher = Publisher(job(tmp_path), run, lambda: (0.0, workers), board, lambda: clock[0])
        publisher.publish()
        assert board.shown["planned_steps",] == 50 and board.shown["last_step_age_seconds",] == 0
        clock[0] += 20
        workers[:] = []
        publisher.publish()
        assert board.shown["workers",] == 0 and board.shown["last_step_age_seconds",] == 20
        assert math.isnan(board.shown["worker_silence_seconds", "1"]) and math.isnan(board.shown["step",])
        run.append_event("failure", failure="worker")
        clock[0] += 10
        workers[:] = [worker(0, 1, step=4)]
        publisher.publish()
        assert board.shown["failures", "worker"] == 1
        assert board.shown["last_step_age_seconds",] == 30, "steps done again are no progress"
        workers[:] = [worker(0, 1, step=6)]
        publisher.publish()
        assert board.shown["last_step_age_seconds",] == 0
        publisher.end()
    assert board.shown and all(math.isnan(value) for value in board.shown.values())


def test_a_training_tells_its_figures(small_job: Callable[..., JobSpec]) -> None:
    from yolofleet.training.loop.worker_group import WorkerGroup
    from yolofleet.training.setup.preflight import check_job
    from yolofleet.training.supervision.worker import run_worker

    spec = small_job(epochs=0.5)
    check_job(spec)
    group = WorkerGroup()
    run_worker(spec, group)
    found = values(worker_readings(spec, 0.0, [worker(step=group.progress.step, metrics=group.progress.metrics)]))
    rows = RunDirectory.open(spec.storage, spec.name).metrics()
    assert found["loss", "all"] == [row["loss"] for row in rows if "loss" in row][-1]
    assert found["average_precision",] == [row["val_AP"] for row in rows if "val_AP" in row][-1]
    assert found["images_per_second",] > 0 and found["step_seconds",] > 0
