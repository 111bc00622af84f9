"""The training loop: build, restore; each step's micro-batches, optimiser, average; judge, save, report.

It runs the same in one plain process, under torchrun and under Ray Train; ``group`` says which of the workers this is,
``evaluate`` judges the averaged model and ``report`` takes rows of metrics. The gradient of a step is the sum over its
micro-batches of loss x micro_batch_size, whichever worker computes them, so any number of workers gives the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from yolofleet.data.stream import MicroBatch
from yolofleet.errors import WorkError
from yolofleet.models import build_model
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.batch_norm import MicroBatchStatistics
from yolofleet.training.checkpoint import CheckpointStore
from yolofleet.training.ema import WeightAverage
from yolofleet.training.finite import FiniteGuard, NonFiniteError
from yolofleet.training.freeze import freeze_blocks
from yolofleet.training.group import WorkerGroup, owned_micro_batches
from yolofleet.training.initial import load_initial
from yolofleet.training.input import open_dataset, training_stream
from yolofleet.training.judgements import Judgements, judgement_row
from yolofleet.training.objective import build_loss
from yolofleet.training.optimizer import apply_settings, build_optimizer
from yolofleet.training.precision import Precision
from yolofleet.training.preparation import run_image_weights, run_table
from yolofleet.training.progress import Milestones, Pace
from yolofleet.training.rollback import roll_back, skipped_windows
from yolofleet.training.sample_log import FOLDER, SampleLog, forget_from
from yolofleet.training.schedule import Schedule
from yolofleet.training.setback import Setback
from yolofleet.training.skips import REPORT_KEY, SkippedSamples, described_skips
from yolofleet.training.state import RunState, prepare, restore, save
from yolofleet.training.strategies.strategy import build_strategy

FEWEST_SAMPLES_TO_JUDGE = 200
"""Samples that must have been seen before the share of skipped ones can stop a run."""

Evaluate = Callable[[nn.Module], Mapping[str, float | None] | None]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: Steps done.
        left: Why the run was left before its end, its state saved; None at its end.
    """

    step: int
    left: str | None = None


def train(job: JobSpec, run: RunDirectory, group: WorkerGroup, *, evaluate: Evaluate | None, report: Report) -> Outcome:
    """Train from where the run directory stands to the end of the job.

    When too many steps in a row are not finite, the run goes back to the checkpoint before them, once, and leaves the
    samples of those steps out.

    Args:
        job: What to compute.
        run: Where its state is; only the first worker writes metrics and checkpoints there.
        group: This worker's place.
        evaluate: Judges a model on the validation set; every worker takes part, the first one gets the figures. None:
            checkpoints are left to be judged by others.
        report: Takes rows of metrics (first worker only).

    Raises:
        UserError: The job does not fit the data or the checkpoint.
        WorkError: The loss is no number for too many steps, or too many samples cannot be read.
    """
    while True:
        try:
            return _train(job, run, group, evaluate=evaluate, report=report)
        except NonFiniteError as error:
            if not roll_back(run, group, error):
                raise


def _train(
    job: JobSpec, run: RunDirectory, group: WorkerGroup, *, evaluate: Evaluate | None, report: Report
) -> Outcome:
    began = time.monotonic()
    hyperparameters = job.resolved_hyperparameters()
    precision = Precision(job.precision, group.device)
    dataset = open_dataset(job.data, job.data.train)
    owned = owned_micro_batches(job.num_micro_batches, group.rank, group.world_size)

    torch.manual_seed(job.seed)
    model = build_model(run_table(job, run), num_classes=len(dataset.classes)).to(group.device, precision.parameters)
    if job.initial_weights is not None:
        load_initial(run.storage, model)
    freeze_blocks(model.train(), job.freeze)
    lay_channels_innermost(model)
    loss = build_loss(model, hyperparameters, job.data.image_size, job.assignment, dataset.manifest.class_counts)
    optimizer = build_optimizer(model, hyperparameters, job.global_batch_size)
    statistics = MicroBatchStatistics(model)
    average = WeightAverage(model, hyperparameters)
    schedule = Schedule(hyperparameters, job.num_steps(len(dataset)), len(dataset) / job.global_batch_size)
    milestones = Milestones(
        num_steps=schedule.num_steps,
        log_every_steps=job.log_every_steps,
        checkpoint_every_steps=job.checkpoint.every_steps,
        evaluation_every_steps=job.evaluation.every_epochs * schedule.steps_per_epoch,
    )

    samples = SampleLog(run.storage, group.rank, record_digests=job.record_samples, fenced=run.check_held)
    store = CheckpointStore(
        run.storage.child("checkpoints"),
        job.checkpoint.keep,
        told=run.append_event,
        before_commit=run.flush,
        fenced=run.check_held,
    )
    store.kept_besides = Judgements(run, store).kept
    state = restore(store, job, group, model, average, optimizer, precision)
    state.skipped_windows = skipped_windows(run)
    statistics.reload()
    setback = Setback(run, state.step, group) if group.is_first else None
    if group.is_first:
        prepare(store, model, average)
        run.truncate_metrics_after(state.step)
        forget_from(run.storage.child(FOLDER), state.step)
        ready = {"workers": group.world_size, "prepared_seconds": round(time.monotonic() - began, 3)}
        run.append_event("start", step=state.step, num_steps=schedule.num_steps, **ready)
    group.barrier()
    skipped = SkippedSamples(run.storage)
    skipped.update()
    state.skipped_samples = group.first_value(skipped.total)  # those since the last row of metrics among them
    group.barrier()

    strategy = build_strategy(job, model, optimizer, precision, group)
    stream = training_stream(job, dataset, schedule, lambda: run_image_weights(run))
    terms = _Terms(group)
    guard = FiniteGuard(group, precision, job.most_non_finite_steps)
    pace = Pace()
    batches = stream.micro_batches(state.step, list(owned))
    left: str | None = None
    try:
        while state.step < schedule.num_steps and left is None:
            if (end := state.window_end(schedule.num_steps)) is not None:
                _close(batches)
                state.step = end
                batches = stream.micro_batches(state.step, list(owned))
            apply_settings(strategy.optimizer, schedule.at(state.step))
            statistics.begin_step()
            guard.begin_step()
            for position in range(len(owned)):
                group.pulse.beat(state.step)
                batch = _next(batches, pace)
                samples.observe(batch)
                last = position == len(owned) - 1
                with strategy.accumulating(last), precision.context():
                    images = precision.images(batch.images)  # (B, 3, H, W) in 0..1
                    predictions = strategy.network(images)
                height, width = images.shape[-2:]
                result = loss(predictions, batch.targets, (height, width))
                with strategy.accumulating(last):
                    strategy.backward(result.total)
                statistics.add_micro_batch()
                terms.add(result, len(batch.skipped))
                guard.observe(result.total, batch.keys)
                pace.samples += len(batch.keys)

            norm = strategy.gradient_norm()
            finite = guard.judge(norm)
            statistics.finish_step(job.num_micro_batches, group.sum, accept=finite)
            strategy.step(finite)
            if finite:
                state.num_updates += 1
                average.update(state.num_updates)
            state.count_step(finite, adapting=guard.adapting)
            if not finite and group.is_first:
                guard.tell(run, state)
            group.pulse.beat(state.step)
            if setback is not None:
                setback.observe(state.step)
            left = group.leave_reason() if state.step < schedule.num_steps else None
            guard.check(state, store)

            if milestones.logs(state.step):
                row = terms.take(job.num_micro_batches) | pace.take()
                state.skipped_samples += int(row["skipped_samples"])
                row["skipped_samples"] = state.skipped_samples
                if _skips_too_many(job, state):
                    samples.flush()
                    group.barrier()
                    skipped.update()
                    if group.is_first:
                        skipped.tell(run, state.step, num_seen=state.step * job.global_batch_size)
                    raise _too_many_skipped(job, skipped.document(state.step * job.global_batch_size))
                if group.is_first:
                    settings = schedule.at(state.step - 1)
                    report(
                        {
                            "step": state.step,
                            "epoch": state.step / schedule.steps_per_epoch,
                            "learning_rate": settings.learning_rate,
                            "momentum": settings.momentum,
                            "gradient_norm": float(norm),
                            "non_finite_steps": state.non_finite_steps,
                        }
                        | precision.figures()
                        | row
                    )
            judged = milestones.evaluates(state.step)
            if judged and evaluate is not None:
                figures = evaluate(average.model)
                if figures is not None:
                    report(judgement_row(state.step, figures))
            if milestones.saves(state.step) or left is not None:
                samples.flush()
                moments = strategy.moments()
                group.barrier()
                if group.is_first:
                    skipped.update()
                    skipped.tell(run, state.step, num_seen=state.step * job.global_batch_size)
                    due = left is None and state.step < schedule.num_steps
                    to_judge = judged and evaluate is None
                    save(store, state, job, model, average, moments, precision, skippable=due, to_judge=to_judge)
                pace.pause()
    finally:
        _close(batches)
        samples.close()
        store.wait()
    if group.is_first:
        run.append_event("end" if left is None else "left", step=state.step, **({"reason": left} if left else {}))
        run.flush()
    return Outcome(state.step, left)


def _next(batches: Iterator[MicroBatch], pace: Pace) -> MicroBatch:
    begin = time.perf_counter()
    batch = next(batches)
    pace.data_wait_seconds += time.perf_counter() - begin
    return batch


def _close(batches: Iterator[MicroBatch]) -> None:
    if isinstance(batches, Generator):
        batches.close()


class _Terms:
    """The loss terms and skipped samples of all workers since the last row of metrics."""

    NAMES = ("loss", "loss_box", "loss_objectness", "loss_classification")

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group
        self._sums = torch.zeros(len(self.NAMES) + 2, dtype=torch.float64, device=group.device)

    @torch.no_grad()
    def add(self, result: Any, num_skipped: int) -> None:
        box, objectness, classification = (
            term.detach().double().reshape(()) for term in (result.box, result.objectness, result.classification)
        )
        self._sums[:4] += torch.stack([box + objectness + classification, box, objectness, classification])
        self._sums[4] += 1
        self._sums[5] += num_skipped

    def take(self, num_micro_batches: int) -> dict[str, float]:
        """Return the means over all workers' micro-batches; a collective, so every worker calls it."""
        self._group.sum(self._sums)
        *terms, count, skipped = self._sums.tolist()
        self._sums.zero_()
        return {name: term / count for name, term in zip(self.NAMES, terms, strict=True)} | {"skipped_samples": skipped}


def _skips_too_many(job: JobSpec, state: RunState) -> bool:
    seen = state.step * job.global_batch_size
    return seen >= FEWEST_SAMPLES_TO_JUDGE and state.skipped_samples > job.data.most_skipped_share * seen


def _too_many_skipped(job: JobSpec, document: dict[str, Any]) -> WorkError:
    return WorkError(
        f"samples skipped: {described_skips(document)}; that is more than data.most_skipped_share = "
        f"{job.data.most_skipped_share}. The run directory's {REPORT_KEY} names each. Look at the data with "
        f"'yolofleet data inspect {job.data.train}', or raise the share"
    )
