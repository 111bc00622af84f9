"""The training loop: the micro-batches of each step, its update; then metrics, evaluation and checkpoint.

It runs the same in one plain process, under torchrun and under Ray Train: ``group`` says which of the workers this is,
``evaluate`` evaluates the averaged model, and ``report`` takes rows of metrics. The gradient of a step is the sum over
its micro-batches of loss x micro_batch_size, whichever worker computes them, so any number of workers gives the same
run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from yolofleet.core.errors import WorkError
from yolofleet.data.augment import finished
from yolofleet.data.loader import on_device
from yolofleet.data.stream import MicroBatch
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.run_state import save
from yolofleet.training.evaluation.checkpoint_evaluations import evaluation_row
from yolofleet.training.loop.non_finite import NonFiniteError, roll_back
from yolofleet.training.loop.pace import EVALUATION, OTHER
from yolofleet.training.loop.progress import Reading
from yolofleet.training.loop.sample_log import REPORT_KEY, format_skips, store_skips
from yolofleet.training.loop.trainer import Trainer, build_trainer
from yolofleet.training.loop.update import apply_settings
from yolofleet.training.loop.worker_group import WorkerGroup

FEWEST_SAMPLES_TO_STOP = 200
"""Samples that must have been seen before the share of skipped ones can stop a run."""

Evaluate = Callable[[nn.Module], Mapping[str, float | None] | None]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    """Steps done."""
    left: str | None = None
    """Why the workers left before the end of the run, with its state saved; None at its end."""


def train(job: JobSpec, run: RunDirectory, group: WorkerGroup, *, evaluate: Evaluate | None, report: Report) -> Outcome:
    """Train from where the run directory stands to the end of the job.

    A step that runs out of memory sends the run back to its last checkpoint, and it takes less from then on.

    When too many steps in a row are non-finite, the run goes back to the checkpoint before them, once, and leaves the
    samples of those steps out.

    Args:
        job: What to compute.
        run: Where its state is; only the first worker writes metrics and checkpoints there.
        group: This worker.
        evaluate: Evaluates a model on the validation set; a collective that gives the figures to the first worker.
            None: the checkpoints are marked to be evaluated by another process.
        report: Takes rows of metrics (first worker only).

    Raises:
        UserError: The job does not fit the data or the checkpoint.
        WorkError: The loss is non-finite for too many steps, or too many samples cannot be read.
    """
    while True:
        trainer: Trainer | None = None
        try:
            trainer = build_trainer(job, run, group)
            return _train(trainer, evaluate, report)
        except NonFiniteError as error:
            if not roll_back(run, group, error):
                raise
        except (RuntimeError, MemoryError, OSError) as error:
            from yolofleet.training.loop.out_of_memory import is_out_of_memory, take_less

            if not is_out_of_memory(error):
                raise
            take_less(job, run, group, error, None if trainer is None else trainer.learner.model)
            if group.world_size > 1:  # the others wait in an exchange: all are started again
                raise
        trainer = None
        _free_memory()  # of what failed


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train(trainer: Trainer, evaluate: Evaluate | None, report: Report) -> Outcome:
    run, group, data, state, milestones = trainer.run, trainer.group, trainer.data, trainer.state, trainer.milestones
    batches = _micro_batches(trainer)
    stopping = trainer.stopping
    left: str | None = None
    over = stopping is not None and stopping.is_over_at_start(state.step)
    try:
        while state.step < milestones.num_steps and left is None and not over:
            if (end := state.window_end(milestones.num_steps)) is not None:
                _close(batches)
                _settle(trainer, report)
                state.skip_to(end)
                batches = _micro_batches(trainer)
            _do_step(trainer, batches, report)
            if milestones.saves(state.step) or trainer.guard.may_exceed(state):
                _settle(trainer, report)
            out_of_hours = stopping is not None and stopping.is_out_of_hours
            left = group.leave_reason() if state.step < milestones.num_steps else None
            if out_of_hours or left is not None:
                _settle(trainer, report)
            evaluation_due = milestones.evaluates(state.step) or out_of_hours
            if evaluation_due and evaluate is not None:
                trainer.meters.pace.enter(EVALUATION)
                figures = evaluate(trainer.learner.average.model)
                if figures is not None:
                    row = evaluation_row(state.step, figures)
                    report(row)
                    if stopping is not None:
                        stopping.observe(row)
                trainer.meters.pace.enter(OTHER)
            if milestones.saves(state.step) or out_of_hours or left is not None:
                over = stopping is not None and state.step < milestones.num_steps and stopping.is_over(state.step)
                periodic = left is None and not over and state.step < milestones.num_steps
                if stopping is not None and evaluation_due:
                    periodic = False  # no evaluation may be missing where they decide the end
                _save(trainer, skippable=periodic, evaluate_later=evaluation_due and evaluate is None)
    finally:
        _close(batches)
        data.log.close()
        trainer.store.wait()
    if over:
        left = None
    if group.is_first:
        reason = {} if left is None else {"reason": left}
        run.append_event("end" if left is None else "left", step=state.step, **reason)
        run.flush()
    return Outcome(state.step, left)


def _do_step(trainer: Trainer, batches: Iterator[MicroBatch], report: Report) -> None:
    """Do one step, and settle the one before it; the host waits for no device but for that."""
    job, group, state = trainer.job, trainer.group, trainer.state
    learner, data, guard, meters = trainer.learner, trainer.data, trainer.guard, trainer.meters
    pace = meters.pace
    precision, strategy = learner.precision, learner.strategy

    # Learning rates and momentum follow from the number of the step alone.
    apply_settings(strategy.optimizer, trainer.schedule.at(state.step))
    learner.statistics.begin_step()
    guard.begin_step()

    # Each micro-batch adds its gradient; workers exchange gradients in the last one at the latest.
    for position in range(len(data.owned)):
        last = position == len(data.owned) - 1
        group.progress.advance(state.step)
        pace.enter("data_wait")
        batch = next(batches)
        pace.enter("copy")
        data.log.observe(batch)
        images = finished(precision.images(batch.images), batch.finish)  # (B, 3, H, W) in 0..1
        pace.enter("forward")
        with strategy.accumulating(last), precision.context():
            predictions = strategy.network(images)
        pace.enter("loss")
        height, width = images.shape[-2:]
        loss = learner.loss(predictions, batch.targets, (height, width))
        pace.enter("backward")
        with strategy.accumulating(last):
            strategy.backward(loss.total)
        pace.enter(OTHER)
        learner.statistics.add_micro_batch()
        meters.terms.add(loss, len(batch.skipped))
        guard.observe(loss.total, batch.keys)
    pace.count_step(job.global_batch_size, (height, width))  # all workers take the same time for a step

    # The average follows the step before while this one is computed: the weights are still that step's.
    pace.enter("optimizer")
    norm = strategy.gradient_norm()
    _settle(trainer, report)

    # Weights and running statistics change together, or not at all where the step is non-finite on any worker.
    pace.meet(alone="optimizer")
    total, sums = guard.total_loss(), meters.terms.shared()
    asked = group.flag(group.progress.leave_reason is not None)
    spent = group.flag(trainer.stopping is not None and trainer.stopping.has_spent_hours())
    group.sum_together(total, asked, spent, sums, learner.statistics.sums)
    pace.enter("optimizer")
    finite = (total.isfinite() & norm.isfinite()).squeeze(0)
    scale = precision.loss_scale()
    learner.statistics.finish_step(job.num_micro_batches, accept=finite)
    strategy.step(finite)
    pace.enter(OTHER)

    state.step += 1
    scalars = torch.stack([value.double() for value in (norm, scale, precision.loss_scale())])
    row = _begin_row(trainer) if trainer.milestones.logs(state.step) else None
    meters.readings.append(Reading.begin(torch.cat([total, asked, spent, scalars, sums]), row))
    group.progress.advance(state.step)
    if meters.restart_cost is not None:
        meters.restart_cost.observe(state.step)


def _settle(trainer: Trainer, report: Report) -> None:
    """Do what follows from the values of the newest step, if that has not been done; a collective."""
    group, state, guard, readings = trainer.group, trainer.state, trainer.guard, trainer.meters.readings
    if not readings:
        return
    reading = readings.pop()
    loss, asked, spent, norm, scale, next_scale, *sums = reading.read()
    group.progress.group_leaves |= asked > 0
    if trainer.stopping is not None:
        trainer.stopping.is_out_of_hours |= spent > 0
    if guard.count(trainer.run, state, loss, norm, scale):
        trainer.learner.average.update(state.num_updates)
    if reading.row is not None or guard.is_exceeded(state):
        row = reading.row if reading.row is not None else _begin_row(trainer)
        row |= {"gradient_norm": norm, "non_finite_steps": state.non_finite_steps}
        if trainer.learner.precision.scales_loss:
            row["loss_scale"] = next_scale
        _log(trainer, row | trainer.meters.terms.means(sums), report)
    guard.check(state, trainer.store)


def _begin_row(trainer: Trainer) -> dict[str, Any]:
    """Return the part of a row of metrics that the host knows when a step is queued; the next row starts anew."""
    step, settings = trainer.state.step, trainer.schedule.at(trainer.state.step - 1)
    trainer.meters.terms.begin()
    trainer.meters.pace.begin()
    return {
        "step": step,
        "epoch": step / trainer.schedule.steps_per_epoch,
        "learning_rate": settings.learning_rate,
        "momentum": settings.momentum,
    }


def _log(trainer: Trainer, row: dict[str, Any], report: Report) -> None:
    """Report a row of metrics; a collective. Ends a run that cannot read too many of its samples."""
    job, group, state, data = trainer.job, trainer.group, trainer.state, trainer.data
    reading, slow = trainer.meters.pace.take()
    row |= reading
    state.skipped_samples += int(row["skipped_samples"])
    row["skipped_samples"] = state.skipped_samples
    num_seen = state.step * job.global_batch_size
    if num_seen >= FEWEST_SAMPLES_TO_STOP and state.skipped_samples > job.data.most_skipped_share * num_seen:
        data.log.flush()
        group.barrier()
        data.skipped.update()
        if group.is_first:
            data.skipped.write_report(trainer.run, state.step, num_seen=num_seen)
        raise _too_many_skipped(job, data.skipped.document(num_seen))
    if group.is_first:
        if slow is not None:
            trainer.run.append_event("slow_rank", step=state.step, **slow)
        report(row)


def _save(trainer: Trainer, *, skippable: bool, evaluate_later: bool) -> None:
    """Take a checkpoint; a collective."""
    job, state, learner, data = trainer.job, trainer.state, trainer.learner, trainer.data
    trainer.meters.pace.enter("checkpoint")
    moments = learner.strategy.moments()
    num_seen = state.step * job.global_batch_size
    failure = store_skips(data.log, data.skipped, trainer.run, trainer.group, state.step, num_seen)
    if failure is not None and not skippable:
        raise failure
    if trainer.group.is_first and failure is not None:
        trainer.run.append_event("checkpoint_failed", step=state.step, reason=str(failure))
    elif trainer.group.is_first:
        save(
            trainer.store,
            state,
            job,
            learner.model,
            learner.average,
            moments,
            learner.precision,
            skippable=skippable,
            evaluate_later=evaluate_later,
        )
        if job.checkpoint.every_steps == 1:
            trainer.store.wait()  # stored in the background it would be a step late
    trainer.meters.pace.enter(OTHER)


def _micro_batches(trainer: Trainer) -> Iterator[MicroBatch]:
    """Return the micro-batches of this worker, from where the run stands."""
    batches = trainer.data.stream.micro_batches(trainer.state.step, list(trainer.data.owned))
    return on_device(batches, trainer.group.device)


def _close(batches: Iterator[MicroBatch]) -> None:
    if isinstance(batches, Generator):
        batches.close()


def _too_many_skipped(job: JobSpec, document: dict[str, Any]) -> WorkError:
    return WorkError(
        f"samples skipped: {format_skips(document)}; that is more than data.most_skipped_share = "
        f"{job.data.most_skipped_share}. The run directory's {REPORT_KEY} names each. Look at the data with "
        f"'yolofleet data inspect {job.data.train}', or raise the share"
    )
