"""A run ends early, or trains on with more epochs: killed as often as you like, it is the same run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from yolofleet.cli.train import _command
from yolofleet.core.errors import UserError
from yolofleet.models import build_model
from yolofleet.models.weight_differences import load_strictly
from yolofleet.specs.hyperparameters import recipe
from yolofleet.specs.job import JobSpec
from yolofleet.specs.stop import StopSpec
from yolofleet.storage import StorageError
from yolofleet.tracking.goodput import summarize_run
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.async_evaluation import CheckpointEvaluator
from yolofleet.training.evaluation.checkpoint_evaluations import AVERAGE, best_checkpoint
from yolofleet.training.evaluation.early_stop import (
    EarlyStopping,
    early_end,
    out_of_patience,
    overrides_to_train_on,
)
from yolofleet.training.loop import train as train_module
from yolofleet.training.loop.schedule import EARLIER_EPOCHS, Schedule
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import trained_table
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision import worker
from yolofleet.training.supervision.worker import run_worker

MakeJob = Callable[..., JobSpec]
STEPS_PER_EPOCH = 4


class KilledError(Exception):
    """The process died."""


def made_up_figures(model: nn.Module) -> dict[str, float]:
    """Return an AP that follows from the weights alone, and jumps about as they change."""
    weights = torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])
    return {"AP": int(hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:6], 16) / 16**6}


class MadeUpValidation:
    """Evaluates as `made_up_figures` does."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, model: nn.Module) -> dict[str, float]:
        return made_up_figures(model)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "Validation", MadeUpValidation)


def kill_before(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    """Let the process die once before each of these steps; the last of two equal ones dies again."""
    do_step, left = train_module._do_step, sorted(steps)

    def step_or_die(trainer: Any, batches: Any, report: Any) -> Any:
        if left and trainer.state.step >= left[0]:
            left.pop(0)
            raise KilledError
        return do_step(trainer, batches, report)

    monkeypatch.setattr(train_module, "_do_step", step_or_die)


def train_to_the_end(job: JobSpec, *, apart: bool = False) -> RunDirectory:
    """Start the run until it is done, as a user would; returns its directory."""
    while not (ready := check_job(job)).finished:
        try:
            run_worker(job, WorkerGroup(), evaluate_apart=apart)
        except KilledError:
            continue
    return ready.run


def newest(run: RunDirectory) -> Any:
    return CheckpointStore(run.storage.child("checkpoints")).newest()


def best_step(run: RunDirectory) -> int:
    best = best_checkpoint(run, CheckpointStore(run.storage.child("checkpoints")))
    assert best is not None
    return best.step


def scores(run: RunDirectory) -> dict[int, float]:
    return {row["step"]: row["val_AP"] for row in run.metrics() if "val_AP" in row}


def events(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["kind"] == kind]


def assert_same(one: Any, other: Any) -> None:
    """Both checkpoints hold the same run, to the last bit."""
    assert one.step == other.step and one.state["run"] == other.state["run"]
    for file, tensors in one.tensors.items():
        assert tensors.keys() == other.tensors[file].keys()
        assert all(torch.equal(tensor, other.tensors[file][name]) for name, tensor in tensors.items()), file


@given(
    st.lists(st.none() | st.sampled_from([0.0, 0.1, 0.15, 0.2, 0.3]), max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.05, 0.1]),
    st.integers(0, 12),
)
def test_patience_ends_at_the_first_step_that_lets_it(
    values: list[float | None], patience: int, min_delta: float, since: int
) -> None:
    stop = StopSpec(patience=patience, min_delta=min_delta)
    figures = {10 * (number + 1): value for number, value in enumerate(values)}
    end = out_of_patience(figures, stop, 10 * since)
    best, waited, expected = None, 0, None
    for step, value in figures.items():
        better = value is not None and (best is None or value > best + min_delta)
        best, waited = (value, 0) if better else (best, waited + (step > 10 * since))
        if waited == patience:
            expected = step
            break
    assert (end and end.step) == expected
    if end is not None:  # what comes later changes nothing, and nothing before it would have ended the run
        known = {step: value for step, value in figures.items() if step <= end.step}
        assert out_of_patience(known, stop, 10 * since) == end
        assert (
            out_of_patience({step: value for step, value in known.items() if step < end.step}, stop, 10 * since) is None
        )


STOP = {"patience": 2}
LONG: dict[str, Any] = {"epochs": 5, "evaluation": {"every_epochs": 0.5}, "checkpoint": {"every_steps": 4, "keep": 1}}


@pytest.fixture
def undisturbed(small_job: MakeJob) -> RunDirectory:
    return train_to_the_end(small_job(name="undisturbed", stop=STOP, **LONG))


@pytest.mark.parametrize("kills", [[0, 1, 2, 3, 4], [3, 3, 5]])
def test_patience_ends_a_run_at_the_same_step_however_often_it_was_killed(
    undisturbed: RunDirectory, kills: list[int], small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    (end,) = events(undisturbed, "ended_early")
    assert end["step"] == newest(undisturbed).step < 5 * STEPS_PER_EPOCH
    assert "stop.patience" in end["reason"] and undisturbed.status() == "FINISHED"
    assert best_step(undisturbed) == max(scores(undisturbed), key=scores(undisturbed).__getitem__)
    kill_before(monkeypatch, kills)
    run = train_to_the_end(small_job(name="killed", stop=STOP, **LONG))
    assert [event["step"] for event in events(run, "ended_early")] == [end["step"]]
    assert scores(run) == scores(undisturbed) and best_step(run) == best_step(undisturbed)
    assert_same(newest(run), newest(undisturbed))


def test_a_storage_that_is_away_delays_the_end_and_moves_it_nowhere(
    undisturbed: RunDirectory, small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    (end,) = events(undisturbed, "ended_early")
    find_end = EarlyStopping._find_end

    def away_at_the_end(stopping: EarlyStopping, step: int) -> bool:
        if step == end["step"]:
            raise StorageError("gave no answer", transient=True)
        return find_end(stopping, step)

    monkeypatch.setattr(EarlyStopping, "_find_end", away_at_the_end)
    run = train_to_the_end(small_job(name="away", stop=STOP, **LONG))
    assert newest(run).step > end["step"]
    assert [event["step"] for event in events(run, "ended_early")] == [end["step"]]
    assert best_step(run) == best_step(undisturbed)


def test_so_it_does_where_evaluations_come_late(undisturbed: RunDirectory, small_job: MakeJob) -> None:
    """All evaluations come when the training is over: the same checkpoint is released as if they had come in time."""
    job = small_job(name="late", stop=STOP, **LONG)
    run = train_to_the_end(job, apart=True)
    assert newest(run).step == 5 * STEPS_PER_EPOCH and scores(run) == {}
    store = CheckpointStore(run.storage.child("checkpoints"))

    def evaluate_step(step: int) -> dict[str, float]:
        model = build_model(trained_table(job), num_classes=len(check_job(job).train.classes))
        load_strictly(model, store.load(step).tensors[AVERAGE])
        return made_up_figures(model)

    CheckpointEvaluator(RunDirectory.open(job.storage, job.name, source="driver"), evaluate_step).evaluate_all()
    assert scores(undisturbed).items() <= scores(run).items()
    assert best_step(run) == best_step(undisturbed)
    assert check_job(job).finished and check_job(job).ended_early


def test_a_run_trains_on_without_its_early_end_as_if_there_had_been_none(
    undisturbed: RunDirectory, small_job: MakeJob
) -> None:
    plain = train_to_the_end(small_job(name="plain", **LONG))
    ready = check_job(small_job(name="undisturbed", **LONG))
    assert not ready.finished and any(change.startswith("stop") for change in ready.changes)
    assert_same(newest(train_to_the_end(small_job(name="undisturbed", **LONG))), newest(plain))


def test_hours_end_a_run_and_more_hours_resume_it(small_job: MakeJob) -> None:
    job = small_job(name="hours", stop={"max_hours": 1e-9}, **LONG)
    run = train_to_the_end(job)
    assert newest(run).step == 2 and list(scores(run)) == [2] and best_step(run) == 2
    (end,) = events(run, "ended_early")
    assert end["step"] == 2 and "max_hours" in end["reason"]
    spent = summarize_run(run.events(), run.metrics()).seconds_trained / 3600
    assert check_job(small_job(name="hours", stop={"max_hours": spent * 0.99}, **LONG)).finished
    longer = small_job(name="hours", stop={"max_hours": spent + 1}, **LONG)
    plain = train_to_the_end(small_job(name="plain", **LONG))
    assert_same(newest(train_to_the_end(longer)), newest(plain))


def test_epochs_can_be_raised_again_before_anything_was_trained(small_job: MakeJob) -> None:
    """The first time it was in vain: the hours were still spent."""
    spent: dict[str, Any] = {"stop": {"max_hours": 1e-9}}
    for name in ("once", "twice"):
        train_to_the_end(small_job(name=name, **LONG, **spent))
    assert check_job(small_job(name="twice", **LONG | {"epochs": 6}, **spent)).finished
    runs = [train_to_the_end(small_job(name=name, **LONG | {"epochs": 7})) for name in ("once", "twice")]
    assert newest(runs[0]).step == 7 * STEPS_PER_EPOCH
    assert_same(newest(runs[0]), newest(runs[1]))


def test_hours_of_all_starts_are_added(small_job: MakeJob) -> None:
    """A start that was killed after an hour counts; the time until the next one, which nobody paid for, does not."""
    job = small_job(name="hours", stop={"max_hours": 1.5}, **LONG)
    run = check_job(job).run
    ago = [datetime.now(UTC) - timedelta(hours=hours) for hours in (9, 8)]
    rows = iter([{"kind": "start", "step": 0, "workers": 1}, {"kind": "stopped", "reason": "SIGTERM"}])
    with pytest.MonkeyPatch.context() as patch:
        for moment in ago:
            patch.setattr("yolofleet.tracking.run_directory.utc_now", lambda moment=moment: moment.isoformat())
            run.append_event(**next(rows))
    run.close()
    train_to_the_end(job)
    assert newest(run).step == 5 * STEPS_PER_EPOCH and not events(run, "ended_early")
    assert check_job(small_job(name="hours", stop={"max_hours": 0.99}, **LONG)).ended_early
    assert not check_job(small_job(name="hours", stop={"max_hours": 1.5}, **LONG)).ended_early


def test_the_overrides_that_are_told_make_it_train_on(small_job: MakeJob) -> None:
    job = small_job(stop={"patience": 2, "max_hours": 1.0})
    run = check_job(job).run
    now = datetime.now(UTC)
    run.append_event("start", step=0, workers=1)
    for step, score in enumerate([0.5, 0.1, 0.1, 0.1, 0.1]):  # more of them came than patience lets
        run.append_metrics({"step": step + 1, "val_AP": score, "time": (now + timedelta(hours=step)).isoformat()})
    run.append_event("stopped", time=(now + timedelta(hours=5)).isoformat())
    run.close()
    told = overrides_to_train_on(job, run, 5, 9)
    assert told == "stop.max_hours=10 stop.patience=8"
    changed = {key.removeprefix("stop."): float(value) for key, value in (part.split("=") for part in told.split())}
    stop = StopSpec(patience=int(changed["patience"]), max_hours=changed["max_hours"])
    assert early_end(run, job.stop, 5) is not None and early_end(run, stop, 5) is None
    assert overrides_to_train_on(job, run, 9, 9) == "epochs=4 stop.max_hours=10"
    assert overrides_to_train_on(small_job(), run, 9, 9) == "epochs=4"


def test_the_command_that_is_told_is_the_one_that_was_given() -> None:
    given = ["name=my run", "stop.max_hours=1", "epochs=2"]
    command = _command("my job.yaml", given, "process", ["epochs=4", "stop.max_hours=10"])
    assert command == ("yolofleet train 'my job.yaml' --launcher process 'name=my run' epochs=4 stop.max_hours=10")


def test_a_run_that_did_its_last_step_was_not_ended_early(small_job: MakeJob) -> None:
    run = train_to_the_end(small_job(epochs=0.25, stop={"max_hours": 1e-9}))
    assert newest(run).step == 1 and not events(run, "ended_early") and run.status() == "FINISHED"


def test_a_run_that_was_killed_before_its_last_word_is_finished(small_job: MakeJob, tmp_path: Path) -> None:
    job = small_job(stop={"max_hours": 1e-9})
    run = train_to_the_end(job)
    log = tmp_path / "runs/small/events.jsonl"
    log.write_bytes(b"".join(line for line in log.read_bytes().splitlines(True) if b'"end"' not in line))
    assert run.status() == "RUNNING"
    plan = check_job(job, record=False)
    assert plan.finished and run.status() == "RUNNING", "a look changes nothing"
    assert check_job(job).finished and run.status() == "FINISHED"
    assert check_job(job).finished and len(events(run, "end")) == 1


class Recording(WorkerGroup):
    """The first worker of two; what it broadcasts is kept."""

    said: ClassVar[list[int]] = []

    def first_value(self, value: int) -> int:
        self.said.append(value)
        return value


class Listening(WorkerGroup):
    """The second worker, which gets what the first one said."""

    def first_value(self, value: int) -> int:
        return Recording.said.pop(0)


def test_every_worker_hears_of_the_end_at_the_same_step(undisturbed: RunDirectory) -> None:
    """What another worker would find by itself does not matter: its clock and its view of the storage may differ."""
    stop = StopSpec(patience=2, max_hours=1000)
    first = EarlyStopping(stop, undisturbed, Recording())
    clock = iter(range(0, 10**9, 10**7)).__next__
    second = EarlyStopping(stop, undisturbed, Listening(rank=1, world_size=2), clock)
    steps = range(5 * STEPS_PER_EPOCH)
    decided = [first.is_over(step) for step in steps]
    assert [second.is_over(step) for step in steps] == decided
    assert decided.index(True) == newest(undisturbed).step
    assert Recording.said == []
    assert not any(second.has_spent_hours() for _ in steps)
    first.is_out_of_hours = second.is_out_of_hours = True  # as the loop does with the same exchange on both
    assert first.is_over(1) and second.is_over(1)


class Counting(WorkerGroup):
    """The only worker; the steps at which the host asks another are kept."""

    asked_at: ClassVar[list[int]] = []

    def first_value(self, value: int) -> int:
        self.asked_at.append(self.progress.step)
        return value


@pytest.mark.parametrize("hours", [1000.0, 1e-9])
def test_hours_cost_no_step_an_exchange_that_the_host_waits_for(hours: float, small_job: MakeJob) -> None:
    job = small_job(stop={"max_hours": hours}, checkpoint={"every_steps": 2 * STEPS_PER_EPOCH})
    run = check_job(job).run
    Counting.asked_at.clear()
    run_worker(job, Counting())
    saved = [row["step"] for row in run.metrics() if "val_AP" in row]
    assert saved == ([4, 8] if hours > 1 else [2])
    assert set(Counting.asked_at) <= {0, *saved}


def test_an_end_without_a_condition_is_refused(small_job: MakeJob) -> None:
    with pytest.raises(UserError, match="stop ends no run without patience"):
        small_job(stop={"metric": "AP50"})


RAISED: dict[str, Any] = {"checkpoint": {"every_steps": 2, "keep": 2}}


@pytest.fixture
def raised(small_job: MakeJob) -> RunDirectory:
    """A run of one epoch that was given a second one."""
    train_to_the_end(small_job(name="raised", epochs=1, **RAISED))
    return train_to_the_end(small_job(name="raised", epochs=2, **RAISED))


@pytest.mark.parametrize("kills", [[4, 5, 6, 7], [1, 3, 4, 4, 7]])
def test_more_epochs_make_the_same_run_however_often_it_was_killed(
    raised: RunDirectory, kills: list[int], small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_before(monkeypatch, kills)
    train_to_the_end(small_job(name="killed", epochs=1, **RAISED))
    run = train_to_the_end(small_job(name="killed", epochs=2, **RAISED))
    assert_same(newest(run), newest(raised))
    (event,) = events(run, "epochs_raised")
    assert (event["was"], event["now"], event["step"]) == (1.0, 2.0, 4)
    assert run.facts()[EARLIER_EPOCHS] == [[1.0, 4]]


def test_momentum_and_average_are_kept_and_the_schedule_is_that_of_the_longer_run(
    raised: RunDirectory, small_job: MakeJob
) -> None:
    rates = {row["step"]: row["learning_rate"] for row in raised.metrics() if "loss" in row}
    job = small_job(name="raised", epochs=2, **RAISED)
    short, long = (Schedule(job.resolved_hyperparameters(), steps, 4.0) for steps in (4, 8))
    for step in range(8):
        assert rates[step + 1] == pytest.approx((short if step < 4 else long).at(step).learning_rate)
    assert newest(raised).state["run"]["num_updates"] == 8, "the average's ramp continues"
    before = CheckpointStore(raised.storage.child("checkpoints")).steps()
    assert 8 in before
    assert check_job(job).finished
    third = train_to_the_end(small_job(name="raised", epochs=3, **RAISED))
    assert third.facts()[EARLIER_EPOCHS] == [[1.0, 4], [2.0, 8]]
    assert [(event["was"], event["now"]) for event in events(third, "epochs_raised")] == [(1.0, 2.0), (2.0, 3.0)]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 500))
def test_a_raised_schedule_warms_up_once(short: int, more: int, steps_per_epoch: int) -> None:
    job = JobSpec.parse(
        {
            "name": "run",
            "model": {"name": "yolov7-tiny"},
            "data": {"train": "a", "val": "b"},
            "epochs": (short + more) / steps_per_epoch,
            "global_batch_size": 1,
            "micro_batch_size": 1,
        },
        source="job",
    )
    earlier = Schedule(recipe("p5"), short, steps_per_epoch)
    plan = [[short / steps_per_epoch, short]]
    schedule = Schedule.of_run(job, steps_per_epoch, {EARLIER_EPOCHS: plan})
    assert schedule.warmup_steps <= schedule.planned_steps(0) / 2 or earlier.recipe_warmup_steps == 0
    peak = schedule.hyperparameters.lr0
    for step in {short, short + 1, short + more - 1}:
        settings = schedule.at(step)
        assert settings.learning_rate == pytest.approx(settings.bias_learning_rate), "no second warm-up"
        assert settings.learning_rate <= peak and settings.momentum == pytest.approx(schedule.hyperparameters.momentum)


def test_fewer_epochs_and_more_for_an_unfinished_run_are_refused_with_the_cure(
    raised: RunDirectory, small_job: MakeJob
) -> None:
    with pytest.raises(UserError, match=r"epochs was 2, now 1\. A run cannot be made shorter.*stop\.patience"):
        check_job(small_job(name="raised", epochs=1, **RAISED))
    check_job(small_job(name="begun", epochs=1))
    with pytest.raises(UserError, match=r"has done 0 of 4 steps: resume it with epochs=1 first.*initial_weights="):
        check_job(small_job(name="begun", epochs=2))
    with pytest.raises(UserError, match="was started with another spec"):
        check_job(small_job(name="raised", epochs=3, seed=1, **RAISED))


def test_an_early_end_takes_more_epochs_too(small_job: MakeJob) -> None:
    run = train_to_the_end(small_job(name="both", stop=STOP, **LONG))
    first = newest(run).step
    longer = small_job(name="both", stop=STOP, **LONG | {"epochs": 6})
    assert not check_job(longer, record=False).finished, "a plan says that it trains on"
    run = train_to_the_end(longer)
    assert newest(run).step > first, "patience begins anew"
    assert best_step(run) == max((step for step in scores(run)), key=lambda step: (scores(run)[step], step))
