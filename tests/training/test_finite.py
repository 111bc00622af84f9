"""Every arithmetic trains; what is no finite number is skipped, counted, told of, and ends the run in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from system.shell import rows
from yolofleet.core.errors import WorkError
from yolofleet.losses import DetectionLoss, LossResult
from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.non_finite import shared_text
from yolofleet.training.loop.precision import LOWEST_SCALE, Precision
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.process import run_in_process

MakeJob = Callable[..., JobSpec]
CPU = torch.device("cpu")


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
    """Change the total loss of each call by its number."""
    original, calls = DetectionLoss.__call__, [0]

    def spoiled(self: DetectionLoss, *arguments: Any) -> LossResult:
        result = original(self, *arguments)
        calls[0] += 1
        return LossResult(**{**vars(result), "total": change(calls[0] - 1, result.total)})

    monkeypatch.setattr(DetectionLoss, "__call__", spoiled)


def with_infinite_gradient(loss: torch.Tensor) -> torch.Tensor:
    loss.register_hook(lambda gradient: gradient * float("inf"))
    return loss * 1.0


def run(job: JobSpec) -> Path:
    ready = check_job(job)
    run_in_process(job)
    return Path(ready.run.url)


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoints/step-*"), key=lambda path: int(path.name.partition("-")[2]))


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "fp16"])
def test_every_precision_trains(precision: str, small_job: MakeJob) -> None:
    folder = run(small_job(precision=precision, epochs=0.75, evaluation={"every_epochs": 9}))
    metrics = [row for row in rows(folder / "metrics.jsonl") if "loss" in row]
    assert len(metrics) == 3
    assert all(0 < row["loss"] < 100 for row in metrics)
    assert ("loss_scale" in metrics[-1]) == (precision == "fp16")
    weights = safetensors.torch.load_file(newest(folder) / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    kind = torch.float64 if precision == "fp64" else torch.float32
    assert {tensor.dtype for name, tensor in weights.items() if name.endswith("weight")} == {kind}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    precision: str, small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two micro-batches a step: the fourth call is the second half of step 2.
    spoil(monkeypatch, lambda call, loss: loss * float("nan") if call == 3 else loss)
    job = small_job(precision=precision, epochs=0.75, checkpoint={"every_steps": 1, "keep": 9})
    folder = run(job)
    metrics = [row for row in rows(folder / "metrics.jsonl") if "loss" in row]
    before, after = [row["non_finite_steps"] for row in metrics[:2]]
    assert after == before + 1
    told = [event for event in rows(folder / "events.jsonl") if event["kind"] == "non_finite"]
    assert [(event["step"], event["in_a_row"]) for event in told] == [(2, 1)]
    for file in ("weights", "average"):
        first, second, third = (
            safetensors.torch.load_file(folder / f"checkpoints/step-{step}/{file}.safetensors") for step in (1, 2, 3)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not all(torch.equal(second[name], third[name]) for name in second) or precision == "fp16"


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_too_many_in_a_row_end_the_run_with_samples_and_checkpoint(
    kind: str, small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(call: int, loss: torch.Tensor) -> torch.Tensor:
        if call < 4:
            return loss
        return loss * float("inf") if kind == "loss" else with_infinite_gradient(loss)

    spoil(monkeypatch, change)
    with pytest.raises(WorkError) as caught:
        run(small_job(epochs=9, most_non_finite_steps=3))
    message = str(caught.value)
    # Steps 3 to 6 went wrong, so the run went back to step 2 and left them out; then steps 7 to 10 did.
    assert "step 10: loss or gradient was no finite number for 4 steps in a row" in message
    assert "most_non_finite_steps is 3" in message
    assert "the last good checkpoint is step 2, and the same command goes on from it" in message
    assert ("The loss is already no number" in message) == (kind == "loss")
    assert message.count(", ") >= 7  # the samples of both micro-batches


def test_a_good_step_between_starts_the_count_anew(small_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda call, loss: loss * float("nan") if call % 4 == 0 else loss)
    folder = run(small_job(epochs=2, most_non_finite_steps=1))
    assert rows(folder / "metrics.jsonl")[-1].keys()
    assert json.loads((newest(folder) / "state.json").read_text())["run"]["non_finite_steps"] == 4


def test_a_gain_that_overflows_is_caught(small_job: MakeJob) -> None:
    with pytest.raises(WorkError, match="The loss is already no number"):
        run(small_job(epochs=9, most_non_finite_steps=1, hyperparameters={"box": 3e38, "obj": 3e38}))


def test_the_loss_scale_gives_way_before_the_run_does() -> None:
    precision = Precision("fp16", CPU)
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scales = []
    while precision.may_lower_scale():
        precision.backward(layer(torch.full((1, 2), float("inf"))).sum())
        precision.gradient_norm(layer, optimizer)
        precision.step(optimizer, finite=False)
        optimizer.zero_grad()
        scales.append(precision.figures()["loss_scale"])
    assert scales == [2.0**power for power in range(15, -1, -1)]
    precision.backward(layer(torch.full((1, 2), float("inf"))).sum())
    precision.gradient_norm(layer, optimizer)
    precision.step(optimizer, finite=False)
    assert precision.figures()["loss_scale"] == LOWEST_SCALE


def test_an_overflow_of_the_scale_is_skipped_but_not_held_against_the_run(
    small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(call: int, loss: torch.Tensor) -> torch.Tensor:
        return with_infinite_gradient(loss) if call < 10 else loss

    spoil(monkeypatch, change)
    folder = run(small_job(precision="fp16", epochs=1.5, most_non_finite_steps=1))
    state = json.loads((newest(folder) / "state.json").read_text())
    assert state["run"]["non_finite_steps"] >= 5
    assert state["loss_scale"]["scale"] <= 2.0**11
    assert not [event for event in rows(folder / "events.jsonl") if event["kind"] == "non_finite"]


def test_the_loss_scale_goes_on_after_a_restart(small_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    class StopError(Exception):
        pass

    def change(call: int, loss: torch.Tensor) -> torch.Tensor:
        if call == 6:
            raise StopError
        return with_infinite_gradient(loss) if call < 2 else loss

    spoil(monkeypatch, change)
    job = small_job(precision="fp16", epochs=1.0)
    check_job(job)
    with pytest.raises(StopError):
        run_in_process(job)
    monkeypatch.undo()
    folder = run(job)
    scales = [row["loss_scale"] for row in rows(folder / "metrics.jsonl") if "loss_scale" in row]
    assert max(scales) <= 2.0**15  # a fresh scale would start at 2^16


def test_texts_of_one_worker_are_its_own() -> None:
    assert shared_text("ä\nb\n", WorkerGroup()) == "ä\nb\n"
    assert shared_text("", WorkerGroup()) == ""
