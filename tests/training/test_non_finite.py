"""Every precision trains; non-finite steps are skipped and counted, and lead back to a checkpoint, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from system.shell import digests, rows
from yolofleet.core.errors import WorkError
from yolofleet.losses import DetectionLoss, LossResult
from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.update import LOWEST_SCALE, Precision
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_in_process

MakeJob = Callable[..., JobSpec]
CPU = torch.device("cpu")


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
    """Change the total loss of each training call by its number; an evaluation's loss has no gradient."""
    original, calls = DetectionLoss.__call__, [0]

    def spoiled(self: DetectionLoss, *arguments: Any) -> LossResult:
        result = original(self, *arguments)
        if not result.total.requires_grad:
            return result
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
def test_a_non_finite_step_is_skipped_and_counted(
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
    assert "step 10: loss or gradient was non-finite for 4 steps in a row" in message
    assert "most_non_finite_steps is 3" in message
    assert "the last good checkpoint is step 2; resume the run from it with the same command" in message
    assert ("The loss itself is non-finite" in message) == (kind == "loss")
    assert message.count(", ") >= 7  # the samples of both micro-batches


def test_a_good_step_between_starts_the_count_anew(small_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda call, loss: loss * float("nan") if call % 4 == 0 else loss)
    folder = run(small_job(epochs=2, most_non_finite_steps=1))
    assert rows(folder / "metrics.jsonl")[-1].keys()
    assert json.loads((newest(folder) / "state.json").read_text())["run"]["non_finite_steps"] == 4


def test_a_gain_that_overflows_is_caught(small_job: MakeJob) -> None:
    with pytest.raises(WorkError, match="The loss itself is non-finite"):
        run(small_job(epochs=9, most_non_finite_steps=1, hyperparameters={"box": 3e38, "obj": 3e38}))


def test_the_loss_scale_is_lowered_to_its_limit() -> None:
    precision = Precision("fp16", CPU)
    layer, no = nn.Linear(2, 1), torch.tensor(False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    scales = []
    while precision.loss_scale() > LOWEST_SCALE:
        precision.backward(layer(torch.full((1, 2), float("inf"))).sum())
        precision.gradient_norm(layer, optimizer)
        precision.step(optimizer, no)
        optimizer.zero_grad()
        scales.append(float(precision.loss_scale()))
    assert scales == [2.0**power for power in range(15, -1, -1)]
    precision.backward(layer(torch.full((1, 2), float("inf"))).sum())
    precision.gradient_norm(layer, optimizer)
    precision.step(optimizer, no)
    assert precision.loss_scale() == LOWEST_SCALE


def test_an_overflow_of_the_loss_scale_is_skipped_but_does_not_count_against_the_run(
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


def test_the_loss_scale_is_restored_after_a_restart(small_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
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


def spoil_calls(monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[int], bool]) -> None:
    """Make the loss of some calls NaN; two calls are a step."""
    spoil(monkeypatch, lambda call, loss: loss * float("nan") if spoilt(call) else loss)


def job_of(small_job: MakeJob, **changes: Any) -> JobSpec:
    fields: dict[str, Any] = {"epochs": 3, "most_non_finite_steps": 2, "evaluation": {"every_epochs": 9.0}}
    return small_job(**(fields | changes))


def test_non_finite_steps_are_left_out_and_the_run_ends(small_job: MakeJob, monkeypatch) -> None:
    spoil_calls(monkeypatch, lambda call: 10 <= call < 16)  # steps 5, 6 and 7, counted from 0
    folder = run(job_of(small_job))
    events = rows(folder / "events.jsonl")
    (event,) = [event for event in events if event["kind"] == "rolled_back"]
    assert (event["to_step"], event["window"]) == (5, [5, 8])
    assert "samples" in event["reason"]
    assert [event["step"] for event in events if event["kind"] == "start"] == [0, 5]
    done = sorted({step for step, _ in digests(folder)})
    assert done == [step for step in range(12) if step not in (5, 6, 7)]
    newest = json.loads((folder / "checkpoints/step-12/state.json").read_text())
    assert newest["run"]["skipped_windows"] == [[5, 8]]
    assert newest["run"]["non_finite_steps"] == 3
    assert [row["step"] for row in rows(folder / "metrics.jsonl") if "loss" in row] == [1, 2, 3, 4, 5, 9, 10, 11, 12]


def test_the_checkpoint_to_roll_back_to_is_kept_however_many_follow(small_job: MakeJob, monkeypatch) -> None:
    spoil_calls(monkeypatch, lambda call: 10 <= call < 18)  # four steps, and as many checkpoints
    folder = run(job_of(small_job, most_non_finite_steps=3, checkpoint={"every_steps": 2, "keep": 1}))
    (event,) = [event for event in rows(folder / "events.jsonl") if event["kind"] == "rolled_back"]
    assert (event["to_step"], event["window"]) == (5, [5, 9])


def test_a_run_rolls_back_once(small_job: MakeJob, monkeypatch) -> None:
    spoil_calls(monkeypatch, lambda call: call >= 10)
    with pytest.raises(WorkError, match=r"non-finite for 3 steps in a row.* last good checkpoint is step 5;"):
        run(job_of(small_job))
    folder = Path(job_of(small_job).storage) / "small"
    assert not (folder / "checkpoints/step-10").exists()  # all that are left lie before the bad steps
    assert [row["non_finite_steps"] for row in rows(folder / "metrics.jsonl") if "loss" in row][-1] == 6
    kinds = [event["kind"] for event in rows(folder / "events.jsonl") if "rolled_back" in event["kind"]]
    assert kinds == ["rolled_back", "not_rolled_back"]
    with pytest.raises(WorkError):  # nor by starting the command again
        run(job_of(small_job))
    kinds = [event["kind"] for event in rows(folder / "events.jsonl") if "rolled_back" in event["kind"]]
    assert kinds.count("rolled_back") == 1


def test_without_a_checkpoint_before_it_the_run_ends(small_job: MakeJob, monkeypatch) -> None:
    spoil_calls(monkeypatch, lambda call: call >= 2)
    with pytest.raises(WorkError, match=r"non-finite.* there is no checkpoint before them"):
        run(job_of(small_job, checkpoint={"every_steps": 50, "keep": 2}))


def test_without_a_whole_checkpoint_before_it_none_is_removed(small_job: MakeJob, monkeypatch) -> None:
    spoil_calls(monkeypatch, lambda call: call >= 2)
    job = job_of(small_job, most_non_finite_steps=3, checkpoint={"every_steps": 6, "keep": 2})
    with pytest.raises(WorkError, match="there is no checkpoint before them"):
        run(job)
    folder = Path(job.storage) / "small" / "checkpoints"
    assert list(folder.glob("step-*/COMMITTED"))  # its weights are those before the bad steps


def test_the_last_step_is_never_left_out(small_job: MakeJob, monkeypatch) -> None:
    spoil_calls(monkeypatch, lambda call: 18 <= call < 24)  # the last three of twelve steps
    folder = run(job_of(small_job))
    assert max(step for step, _ in digests(folder)) == 11
    assert (folder / "checkpoints/step-12/COMMITTED").exists()
