"""Numbers gone wrong: back to before, once, without the steps that did it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from system.shell import digests, rows
from yolofleet.core.errors import WorkError
from yolofleet.losses import DetectionLoss, LossResult
from yolofleet.specs.job import JobSpec
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.process import run_in_process

MakeJob = Callable[..., JobSpec]


def spoil_calls(monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[int], bool]) -> None:
    """Make the loss of some calls no number; two calls are a step."""
    original, calls = DetectionLoss.__call__, [0]

    def spoiled(self: DetectionLoss, *arguments: Any) -> LossResult:
        result = original(self, *arguments)
        calls[0] += 1
        return LossResult(**{**vars(result), "total": result.total * float("nan")}) if spoilt(calls[0] - 1) else result

    monkeypatch.setattr(DetectionLoss, "__call__", spoiled)


def job_of(small_job: MakeJob, **changes: Any) -> JobSpec:
    fields: dict[str, Any] = {"epochs": 3, "most_non_finite_steps": 2, "evaluation": {"every_epochs": 9.0}}
    return small_job(**(fields | changes))


def run(job: JobSpec) -> Path:
    ready = check_job(job)
    run_in_process(job)
    return Path(ready.run.url)


def test_the_steps_that_went_wrong_are_left_out_and_the_run_ends(small_job: MakeJob, monkeypatch) -> None:
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


def test_what_it_needs_is_kept_however_many_checkpoints_follow(small_job: MakeJob, monkeypatch) -> None:
    spoil_calls(monkeypatch, lambda call: 10 <= call < 18)  # four steps, and as many checkpoints
    folder = run(job_of(small_job, most_non_finite_steps=3, checkpoint={"every_steps": 2, "keep": 1}))
    (event,) = [event for event in rows(folder / "events.jsonl") if event["kind"] == "rolled_back"]
    assert (event["to_step"], event["window"]) == (5, [5, 9])


def test_it_is_done_once(small_job: MakeJob, monkeypatch) -> None:
    spoil_calls(monkeypatch, lambda call: call >= 10)
    with pytest.raises(WorkError, match=r"no finite number for 3 steps in a row.* last good checkpoint is step 5, and"):
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
    with pytest.raises(WorkError, match=r"no finite number.* there is no checkpoint before them"):
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
