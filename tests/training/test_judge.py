"""Checkpoints that are judged beside the training: the same figures, none forgotten, none taken away before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.async_evaluation import Judge, judged_here
from yolofleet.training.evaluation.checkpoint_evaluations import (
    AVERAGE,
    DIGEST,
    TO_JUDGE,
    Judgements,
    best_checkpoint,
    judgement_row,
)
from yolofleet.training.loop.worker_group import StoppedError, WorkerGroup
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_worker

CPU = torch.device("cpu")


def _untold(kind: str, **fields: Any) -> None:
    """What happened is not what is tested."""


class Run:
    """A run directory with checkpoints of nothing much."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.directory = RunDirectory(open_storage(folder / "run"))
        self.driver = RunDirectory(open_storage(folder / "run"), source="driver")
        self.store = CheckpointStore(self.directory.storage.child("checkpoints"), keep, told=_untold)
        self.store.kept_besides = Judgements(self.directory, self.store).kept

    def save(self, step: int, *, to_judge: bool = True, value: float = 0.0) -> None:
        self.store.save(step, {AVERAGE: {"w": torch.tensor([float(step), value])}}, {TO_JUDGE: to_judge})
        self.store.wait()

    def judge(self, judge_step: Callable[[int], Any]) -> Judge:
        return Judge(self.driver, judge_step)

    def failures(self) -> list[dict[str, Any]]:
        return [event for event in self.directory.events() if event["kind"] == "evaluation_failed"]


def evaluations(run: RunDirectory) -> dict[int, dict[str, Any]]:
    """Return the figures of every evaluation by its step."""
    return {
        row["step"]: {key: value for key, value in row.items() if key.startswith("val_")}
        for row in run.metrics()
        if "val_AP" in row
    }


def test_what_is_judged_beside_is_what_the_workers_would_have_found(small_job: Callable[..., JobSpec]) -> None:
    found = []
    for name, apart in (("inline", False), ("apart", True)):
        job = small_job(name=name, epochs=4)
        run = check_job(job).run
        run_worker(job, WorkerGroup(), evaluate_apart=apart)
        assert bool(evaluations(run)) != apart
        Judge(run, lambda step, job=job: judged_here(job, step, CPU)).judge_all()
        best = best_checkpoint(run, CheckpointStore(run.storage.child("checkpoints")))
        assert best is not None
        found.append((evaluations(run), best.step))
    assert found[0][1] == found[1][1]
    judged_in_time = {step: figures for step, figures in found[0][0].items() if step in found[1][0]}
    assert judged_in_time == found[1][0]
    assert max(found[0][0]) in found[1][0]


@settings(max_examples=30)
@given(
    scores=st.lists(st.floats(0, 1) | st.none(), min_size=1, max_size=8),
    lag=st.integers(0, 8),
    keep=st.integers(1, 3),
)
def test_neither_the_best_nor_what_waits_is_taken_away(
    scores: list[float | None], lag: int, keep: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The judge is ``lag`` checkpoints behind; the oldest that waits is always there, the best is never lost."""
    run = Run(tmp_path_factory.mktemp("run"), keep)
    judged: dict[int, float | None] = {}

    def judge_oldest() -> None:
        waiting = Judgements(run.directory, run.store).waiting()
        if waiting:
            judged[waiting[0]] = scores[waiting[0] - 1]
            run.driver.append_metrics(judgement_row(waiting[0], {"AP": scores[waiting[0] - 1]}))

    for step in range(1, len(scores) + 1):
        run.save(step)
        if step > lag:
            judge_oldest()
    while Judgements(run.directory, run.store).waiting():
        judge_oldest()
    numbers = {step: score for step, score in judged.items() if score is not None}
    best = best_checkpoint(run.directory, run.store)
    assert best is not None
    expected = max(numbers, key=lambda step: (numbers[step], step)) if numbers else len(scores)
    assert best.step == expected
    assert 1 in judged, "the first waits until the judge comes"


def test_the_last_of_a_long_row_is_judged_and_the_disk_stays_small(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 30):
        run.save(step)
        assert len(run.store.steps()) <= 4
    seen: list[int] = []

    def judge_step(step: int) -> dict[str, float]:
        seen.append(step)
        return {"AP": 0.5}

    run.judge(judge_step).judge_all()
    assert seen == sorted(seen) and seen[0] == 1 and seen[-1] == 29
    run.judge(judge_step).judge_all()
    assert len(seen) == len(set(seen)), "what is judged is not judged again"


def test_what_fails_is_tried_again_and_then_told(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=3)
    run.save(1)
    run.save(2)
    attempts: list[int] = []

    def judge_step(step: int) -> dict[str, float]:
        attempts.append(step)
        if step == 1:
            raise RuntimeError("the node\nis gone")
        return {"AP": 0.1}

    run.judge(judge_step).judge_all()
    assert attempts == [1, 1, 1, 2]
    assert [event["again"] for event in run.failures()] == [True, True, False]
    assert run.failures()[0]["reason"] == "RuntimeError: the node is gone"
    assert list(evaluations(run.directory)) == [2]
    assert Judgements(run.directory, run.store).waiting() == [1], "the next start tries it again"


def test_weights_that_came_out_otherwise_are_judged_anew(tmp_path: Path) -> None:
    """After numbers went wrong a run may come to other weights at the same step."""
    run = Run(tmp_path, keep=3)
    run.save(1)
    run.judge(lambda step: {"AP": 0.9}).judge_all()
    run.save(1, value=1.0)
    judgements = Judgements(run.directory, run.store)
    assert judgements.waiting() == [1]
    assert judgements.best_first() == []
    run.judge(lambda step: {"AP": 0.2}).judge_all()
    assert len([row for row in run.directory.metrics() if DIGEST in row]) == 2
    assert judgements.waiting() == []


def test_a_thread_judges_while_others_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolofleet.training.evaluation.async_evaluation.POLL_SECONDS", 0.01)
    run = Run(tmp_path, keep=3)
    done = threading.Event()

    def judge_step(step: int) -> dict[str, float]:
        if step == 2:
            done.set()
        return {"AP": step / 10}

    with run.judge(judge_step) as judge:
        run.save(1)
        run.save(2)
        run.save(3, to_judge=False)
        assert done.wait(30)
        judge.judge_all()
    assert evaluations(run.directory) == {1: {"val_AP": 0.1}, 2: {"val_AP": 0.2}}


def test_one_that_is_told_to_stop_leaves_the_rest(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1)

    def judge_step(step: int) -> dict[str, float]:
        raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        run.judge(judge_step).judge_all()
    assert run.failures() == []


def test_a_damaged_best_checkpoint_gives_way_to_the_next(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=3)
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1)):
        run.save(step)
        run.driver.append_metrics(judgement_row(step, {"AP": score}))
    (tmp_path / "run/checkpoints/step-2/average.safetensors").write_bytes(b"")
    best = best_checkpoint(run.directory, run.store)
    assert best is not None and best.step == 1
