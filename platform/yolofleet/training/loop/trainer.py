"""Everything that a worker trains with, built from the job and restored from the run directory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from yolofleet.data.stream import TrainingStream
from yolofleet.losses import DetectionLoss
from yolofleet.models import build_model
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.models.network import Network
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.run_state import RunState, prepare, restore
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.checkpoint_evaluations import Judgements
from yolofleet.training.loop.batch_norm import MicroBatchStatistics
from yolofleet.training.loop.non_finite import FiniteGuard, skipped_windows
from yolofleet.training.loop.optimizer import WeightAverage, build_optimizer
from yolofleet.training.loop.precision import Precision
from yolofleet.training.loop.progress import LossTerms, Milestones, Pace
from yolofleet.training.loop.sample_log import FOLDER, SampleLog, SkippedSamples, forget_from
from yolofleet.training.loop.schedule import Schedule
from yolofleet.training.loop.worker_group import WorkerGroup, owned_micro_batches
from yolofleet.training.metrics.restart_cost import Setback
from yolofleet.training.setup.builders import build_loss, freeze_blocks, open_dataset, training_stream
from yolofleet.training.setup.preparation import run_image_weights, run_table
from yolofleet.training.setup.pretrained import load_initial
from yolofleet.training.strategies.strategy import Strategy, build_strategy


@dataclass
class Session:
    """One worker's part of a run, from the step that the run directory stands at.

    Attributes:
        job: What is computed.
        run: The run directory.
        group: This worker's place.
        owned: The micro-batches of every step that are this worker's.
        precision: What is computed in which type.
        model: The network, in training form.
        average: The average of its weights.
        loss: The loss of a micro-batch.
        statistics: Batch-norm statistics over the micro-batches of a step.
        strategy: Who holds which part of the state, and how gradients meet.
        schedule: Learning rates and momentum by step.
        milestones: Which steps do more than train.
        stream: The micro-batches.
        state: Where the run stands.
        store: Its checkpoints.
        samples: The log of what the network saw.
        skipped: Samples that could not be read.
        guard: Watches over numbers that are not finite.
        terms: Means of the loss terms.
        pace: Speed.
        setback: What a restart cost; None on all workers but the first.
    """

    job: JobSpec
    run: RunDirectory
    group: WorkerGroup
    owned: range
    precision: Precision
    model: Network
    average: WeightAverage
    loss: DetectionLoss
    statistics: MicroBatchStatistics
    strategy: Strategy
    schedule: Schedule
    milestones: Milestones
    stream: TrainingStream
    state: RunState
    store: CheckpointStore
    samples: SampleLog
    skipped: SkippedSamples
    guard: FiniteGuard
    terms: LossTerms
    pace: Pace
    setback: Setback | None


def open_session(job: JobSpec, run: RunDirectory, group: WorkerGroup) -> Session:
    """Build everything, restore the newest whole checkpoint, and forget what the run directory holds beyond it.

    A collective: every worker calls it.

    Raises:
        UserError: The job does not fit the data or the checkpoint.
    """
    began = time.monotonic()
    hyperparameters = job.resolved_hyperparameters()
    precision = Precision(job.precision, group.device)
    dataset = open_dataset(job.data, job.data.train)

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

    store = CheckpointStore(
        run.storage.child("checkpoints"),
        job.checkpoint.keep,
        told=run.append_event,
        before_commit=run.flush,
        fenced=run.check_held,
    )
    guard = FiniteGuard(group, precision, job.most_non_finite_steps)
    judgements = Judgements(run, store)
    store.kept_besides = lambda steps: judgements.kept(steps) | guard.kept(steps)
    state = restore(store, job, group, model, average, optimizer, precision)
    state.skipped_windows = skipped_windows(run)
    statistics.reload()
    setback = None
    if group.is_first:
        setback = Setback(run, state.step, group)
        prepare(store, model, average)
        run.truncate_metrics_after(state.step)
        forget_from(run.storage.child(FOLDER), state.step)
        ready = {"workers": group.world_size, "prepared_seconds": round(time.monotonic() - began, 3)}
        run.append_event("start", step=state.step, num_steps=schedule.num_steps, **ready)
        setback.begin()
    group.barrier()
    skipped = SkippedSamples(run.storage)
    skipped.update()
    state.skipped_samples = group.first_value(skipped.total)  # those since the last row of metrics among them
    group.barrier()

    return Session(
        job=job,
        run=run,
        group=group,
        owned=owned_micro_batches(job.num_micro_batches, group.rank, group.world_size),
        precision=precision,
        model=model,
        average=average,
        loss=loss,
        statistics=statistics,
        strategy=build_strategy(job, model, optimizer, precision, group),
        schedule=schedule,
        milestones=Milestones(
            num_steps=schedule.num_steps,
            log_every_steps=job.log_every_steps,
            checkpoint_every_steps=job.checkpoint.period_steps,
            evaluation_every_steps=job.evaluation.every_epochs * schedule.steps_per_epoch,
        ),
        stream=training_stream(job, dataset, schedule, lambda: run_image_weights(run)),
        state=state,
        store=store,
        samples=SampleLog(run.storage, group.rank, record_digests=job.record_samples, fenced=run.check_held),
        skipped=skipped,
        guard=guard,
        terms=LossTerms(group),
        pace=Pace(),
        setback=setback,
    )
