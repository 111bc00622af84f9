"""Checkpoints evaluated beside the training: the same figures, none forgotten, none removed before."""

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
from yolofleet.storage.local import FileStorage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.async_evaluation import CheckpointEvaluator, evaluate_checkpoint
from yolofleet.training.evaluation.checkpoint_evaluations import (
    AVERAGE,
    DIGEST,
    EVALUATE_LATER,
    CheckpointEvaluations,
    best_checkpoint,
    evaluation_row,
)
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.loop.worker_progress import StoppedError
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_worker

CPU = torch.device("cpu")


def ignore_event(kind: str, **fields: Any) -> None:
    """Take no notice of an event."""


class Run:
    """A run directory with checkpoints of nothing much."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.directory = RunDirectory(open_storage(folder / "run"))
        self.driver = RunDirectory(open_storage(folder / "run"), source="driver")
        self.store = CheckpointStore(self.directory.storage.child("checkpoints"), keep, on_event=ignore_event)
        self.store.protected_steps = CheckpointEvaluations(self.directory, self.store).protected_steps

    def save(self, step: int, *, evaluate_later: bool = True, value: float = 0.0) -> None:
        self.store.save(step, {AVERAGE: {"w": torch.tensor([float(step), value])}}, {EVALUATE_LATER: evaluate_later})
        self.store.wait()

    def evaluator(self, evaluate_step: Callable[[int], Any]) -> CheckpointEvaluator:
        return CheckpointEvaluator(self.driver, evaluate_step)

    def failures(self) -> list[dict[str, Any]]:
        return [event for event in self.directory.events() if event["kind"] == "evaluation_failed"]


def evaluations(run: RunDirectory) -> dict[int, dict[str, Any]]:
    """Return the figures of every evaluation by its step."""
    return {
        row["step"]: {key: value for key, value in row.items() if key.startswith("val_")}
        for row in run.metrics()
        if "val_AP" in row
    }


def test_an_evaluation_beside_the_training_gives_the_figures_of_the_workers(small_job: Callable[..., JobSpec]) -> None:
    """Beside the training some checkpoints may be left out: it evaluates fewer, but the same."""
    found = []
    for name, apart in (("inline", False), ("apart", True)):
        job = small_job(name=name, epochs=4)
        run = check_job(job).run
        run_worker(job, WorkerGroup(), evaluate_apart=apart)
        assert bool(evaluations(run)) != apart
        CheckpointEvaluator(run, lambda step, job=job: evaluate_checkpoint(job, step, CPU)).evaluate_all()
        best = best_checkpoint(run, CheckpointStore(run.storage.child("checkpoints")))
        assert best is not None
        scores = {step: figures["val_AP"] for step, figures in evaluations(run).items()}
        assert best.step == max(scores, key=lambda step: (scores[step], step))
        found.append(evaluations(run))
    inline, apart_from_training = found
    for step, figures in apart_from_training.items():
        assert figures.keys() == inline[step].keys()
        for name, value in figures.items():  # a loaded model lies otherwise in memory: the loss is rounded otherwise
            assert value == (pytest.approx(inline[step][name], rel=1e-5) if "loss" in name else inline[step][name])
    assert {min(inline), max(inline)} <= apart_from_training.keys()


@settings(max_examples=30)
@given(
    scores=st.lists(st.floats(0, 1) | st.none(), min_size=1, max_size=8),
    lag=st.integers(0, 8),
    keep=st.integers(1, 3),
)
def test_neither_the_best_nor_a_waiting_checkpoint_is_removed(
    scores: list[float | None], lag: int, keep: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Evaluation is ``lag`` checkpoints behind; the oldest that waits is always there, the best is never removed."""
    run = Run(tmp_path_factory.mktemp("run"), keep)
    evaluated: dict[int, float | None] = {}

    def evaluate_oldest() -> None:
        waiting = CheckpointEvaluations(run.directory, run.store).waiting()
        if waiting:
            evaluated[waiting[0]] = scores[waiting[0] - 1]
            run.driver.append_metrics(evaluation_row(waiting[0], {"AP": scores[waiting[0] - 1]}))

    for step in range(1, len(scores) + 1):
        run.save(step)
        if step > lag:
            evaluate_oldest()
    while CheckpointEvaluations(run.directory, run.store).waiting():
        evaluate_oldest()
    numbers = {step: score for step, score in evaluated.items() if score is not None}
    best = best_checkpoint(run.directory, run.store)
    assert best is not None
    expected = max(numbers, key=lambda step: (numbers[step], step)) if numbers else len(scores)
    assert best.step == expected
    assert 1 in evaluated, "the first waits until it is evaluated"


def test_the_last_of_many_checkpoints_is_evaluated_and_the_disk_stays_small(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 30):
        run.save(step)
        assert len(run.store.steps()) <= 4
    seen: list[int] = []

    def evaluate_step(step: int) -> dict[str, float]:
        seen.append(step)
        return {"AP": 0.5}

    run.evaluator(evaluate_step).evaluate_all()
    assert seen == sorted(seen) and seen[0] == 1 and seen[-1] == 29
    run.evaluator(evaluate_step).evaluate_all()
    assert len(seen) == len(set(seen)), "no checkpoint is evaluated twice"


def test_a_checkpoint_costs_one_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, keep=2)
    run.save(1)
    run.evaluator(lambda step: {"AP": 0.5}).evaluate_all()
    run.save(2, evaluate_later=False)
    run.save(3, evaluate_later=False)
    listed: list[str] = []
    list_all = FileStorage.list
    monkeypatch.setattr(FileStorage, "list", lambda self, prefix="": listed.append(prefix) or list_all(self, prefix))
    run.save(4)
    assert listed == ["step-"]
    monkeypatch.undo()
    assert run.store.steps() == [1, 3, 4], "the best, and the newest two"


def test_a_failure_is_tried_again_and_then_left_with_an_event(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=3)
    run.save(1)
    run.save(2)
    attempts: list[int] = []

    def evaluate_step(step: int) -> dict[str, float]:
        attempts.append(step)
        if step == 1:
            raise RuntimeError("the node\nis gone")
        return {"AP": 0.1}

    run.evaluator(evaluate_step).evaluate_all()
    assert attempts == [1, 1, 1, 2]
    assert [event["again"] for event in run.failures()] == [True, True, False]
    assert run.failures()[0]["reason"] == "RuntimeError: the node is gone"
    assert list(evaluations(run.directory)) == [2]
    assert CheckpointEvaluations(run.directory, run.store).waiting() == [1], "the next start tries it again"


def test_other_weights_at_the_same_step_are_evaluated_anew(tmp_path: Path) -> None:
    """After a rollback a run may come to other weights at the same step."""
    run = Run(tmp_path, keep=3)
    run.save(1)
    run.evaluator(lambda step: {"AP": 0.9}).evaluate_all()
    run.save(1, value=1.0)
    found = CheckpointEvaluations(run.directory, run.store)
    assert found.waiting() == [1]
    assert found.best_first() == []
    run.evaluator(lambda step: {"AP": 0.2}).evaluate_all()
    assert len([row for row in run.directory.metrics() if DIGEST in row]) == 2
    assert found.waiting() == []


def test_a_thread_evaluates_while_others_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolofleet.training.evaluation.async_evaluation.POLL_SECONDS", 0.01)
    run = Run(tmp_path, keep=3)
    done = threading.Event()

    def evaluate_step(step: int) -> dict[str, float]:
        if step == 2:
            done.set()
        return {"AP": step / 10}

    with run.evaluator(evaluate_step) as evaluator:
        run.save(1)
        run.save(2)
        run.save(3, evaluate_later=False)
        assert done.wait(30)
        evaluator.evaluate_all()
    assert evaluations(run.directory) == {1: {"val_AP": 0.1}, 2: {"val_AP": 0.2}}


def test_an_evaluation_that_is_stopped_leaves_the_rest(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1)

    def evaluate_step(step: int) -> dict[str, float]:
        raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        run.evaluator(evaluate_step).evaluate_all()
    assert run.failures() == []


def test_a_damaged_best_checkpoint_gives_way_to_the_next(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=3)
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1)):
        run.save(step)
        run.driver.append_metrics(evaluation_row(step, {"AP": score}))
    (tmp_path / "run/checkpoints/step-2/average.safetensors").write_bytes(b"")
    best = best_checkpoint(run.directory, run.store)
    assert best is not None and best.step == 1
