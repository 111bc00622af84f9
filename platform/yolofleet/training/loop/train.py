"""The training loop: each step's micro-batches, optimiser, average; then metrics, judgement and checkpoint.

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

from yolofleet.core.errors import WorkError
from yolofleet.data.stream import MicroBatch
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.run_state import save
from yolofleet.training.evaluation.checkpoint_evaluations import judgement_row
from yolofleet.training.loop.non_finite import NonFiniteError, roll_back
from yolofleet.training.loop.optimizer import apply_settings
from yolofleet.training.loop.progress import Pace
from yolofleet.training.loop.sample_log import REPORT_KEY, described_skips
from yolofleet.training.loop.trainer import Session, open_session
from yolofleet.training.loop.worker_group import WorkerGroup

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
            return _train(open_session(job, run, group), evaluate, report)
        except NonFiniteError as error:
            if not roll_back(run, group, error):
                raise


def _train(session: Session, evaluate: Evaluate | None, report: Report) -> Outcome:
    state, group, milestones = session.state, session.group, session.milestones
    batches = session.stream.micro_batches(state.step, list(session.owned))
    left: str | None = None
    try:
        while state.step < milestones.num_steps and left is None:
            if (end := state.window_end(milestones.num_steps)) is not None:
                _close(batches)
                state.leave_out_until(end)
                batches = session.stream.micro_batches(state.step, list(session.owned))
            gradient_norm = _do_step(session, batches)
            left = group.leave_reason() if state.step < milestones.num_steps else None
            if milestones.logs(state.step) or session.guard.is_over(state):
                _log(session, gradient_norm, report)
            session.guard.check(state, session.store)
            judged = milestones.evaluates(state.step)
            if judged and evaluate is not None and (figures := evaluate(session.average.model)) is not None:
                report(judgement_row(state.step, figures))
            if milestones.saves(state.step) or left is not None:
                due = left is None and state.step < milestones.num_steps
                _save(session, skippable=due, to_judge=judged and evaluate is None)
    finally:
        _close(batches)
        session.samples.close()
        session.store.wait()
    if group.is_first:
        reason = {} if left is None else {"reason": left}
        session.run.append_event("end" if left is None else "left", step=state.step, **reason)
        session.run.flush()
    return Outcome(state.step, left)


def _do_step(session: Session, batches: Iterator[MicroBatch]) -> torch.Tensor:
    """Do one step; returns the norm of its gradient, a scalar on the device."""
    state, group, strategy = session.state, session.group, session.strategy
    apply_settings(strategy.optimizer, session.schedule.at(state.step))
    session.statistics.begin_step()
    session.guard.begin_step()
    for position in range(len(session.owned)):
        group.pulse.beat(state.step)
        batch = _next(batches, session.pace)
        session.samples.observe(batch)
        last = position == len(session.owned) - 1
        with strategy.accumulating(last), session.precision.context():
            images = session.precision.images(batch.images)  # (B, 3, H, W) in 0..1
            predictions = strategy.network(images)
        height, width = images.shape[-2:]
        result = session.loss(predictions, batch.targets, (height, width))
        with strategy.accumulating(last):
            strategy.backward(result.total)
        session.statistics.add_micro_batch()
        session.terms.add(result, len(batch.skipped))
        session.guard.observe(result.total, batch.keys)
    session.pace.samples += session.job.global_batch_size  # all workers take the same time for a step

    norm = strategy.gradient_norm()
    finite = session.guard.judge(norm)
    session.statistics.finish_step(session.job.num_micro_batches, group.sum, accept=finite)
    strategy.step(finite)
    if finite:
        state.num_updates += 1
        session.average.update(state.num_updates)
    state.count_step(finite, adapting=session.guard.adapting)
    if not finite and group.is_first:
        session.guard.tell(session.run, state)
    group.pulse.beat(state.step)
    if session.setback is not None:
        session.setback.observe(state.step)
    return norm


def _log(session: Session, gradient_norm: torch.Tensor, report: Report) -> None:
    """Report the means since the last row; a collective. Ends a run that cannot read too many of its samples."""
    state = session.state
    row = session.terms.take() | session.pace.take()
    state.skipped_samples += int(row["skipped_samples"])
    row["skipped_samples"] = state.skipped_samples
    num_seen = state.step * session.job.global_batch_size
    most = session.job.data.most_skipped_share
    if num_seen >= FEWEST_SAMPLES_TO_JUDGE and state.skipped_samples > most * num_seen:
        session.samples.flush()
        session.group.barrier()
        session.skipped.update()
        if session.group.is_first:
            session.skipped.tell(session.run, state.step, num_seen=num_seen)
        raise _too_many_skipped(session.job, session.skipped.document(num_seen))
    if session.group.is_first:
        settings = session.schedule.at(state.step - 1)
        report(
            {
                "step": state.step,
                "epoch": state.step / session.schedule.steps_per_epoch,
                "learning_rate": settings.learning_rate,
                "momentum": settings.momentum,
                "gradient_norm": float(gradient_norm),
                "non_finite_steps": state.non_finite_steps,
            }
            | session.precision.figures()
            | row
        )


def _save(session: Session, *, skippable: bool, to_judge: bool) -> None:
    """Take a checkpoint; a collective."""
    session.samples.flush()
    moments = session.strategy.moments()
    session.group.barrier()
    if session.group.is_first:
        session.skipped.update()
        num_seen = session.state.step * session.job.global_batch_size
        session.skipped.tell(session.run, session.state.step, num_seen=num_seen)
        save(
            session.store,
            session.state,
            session.job,
            session.model,
            session.average,
            moments,
            session.precision,
            skippable=skippable,
            to_judge=to_judge,
        )
        if session.job.checkpoint.every_steps == 1:
            session.store.wait()  # stored in the background it would be a step late
    session.pace.pause()


def _next(batches: Iterator[MicroBatch], pace: Pace) -> MicroBatch:
    begin = time.perf_counter()
    batch = next(batches)
    pace.data_wait_seconds += time.perf_counter() - begin
    return batch


def _close(batches: Iterator[MicroBatch]) -> None:
    if isinstance(batches, Generator):
        batches.close()


def _too_many_skipped(job: JobSpec, document: dict[str, Any]) -> WorkError:
    return WorkError(
        f"samples skipped: {described_skips(document)}; that is more than data.most_skipped_share = "
        f"{job.data.most_skipped_share}. The run directory's {REPORT_KEY} names each. Look at the data with "
        f"'yolofleet data inspect {job.data.train}', or raise the share"
    )
