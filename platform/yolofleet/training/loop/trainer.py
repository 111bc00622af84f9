"""All that a worker trains with, in a few parts: built from the job and restored from the run directory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from yolofleet.data.dataset import ShardDataset
from yolofleet.data.stream import TrainingStream
from yolofleet.losses import DetectionLoss
from yolofleet.models import build_model
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.models.network import Network
from yolofleet.models.profile import GIGA, cost
from yolofleet.models.wiring import wire
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.run_state import RunState, prepare, restore
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.checkpoint_evaluations import CheckpointEvaluations
from yolofleet.training.loop.milestones import Milestones
from yolofleet.training.loop.non_finite import FiniteGuard, skipped_windows
from yolofleet.training.loop.pace import Pace, find_peak
from yolofleet.training.loop.progress import LossTerms, Reading, RestartCost
from yolofleet.training.loop.sample_log import FOLDER, SampleLog, SkippedSamples, remove_rows_from
from yolofleet.training.loop.schedule import Schedule
from yolofleet.training.loop.update import MicroBatchStatistics, Precision, WeightAverage, build_optimizer
from yolofleet.training.loop.worker_group import WorkerGroup, assign_micro_batches
from yolofleet.training.setup.builders import build_loss, freeze_blocks, open_dataset, training_stream
from yolofleet.training.setup.preparation import run_deal, run_image_weights, run_table
from yolofleet.training.strategies.strategy import Strategy, build_strategy

if TYPE_CHECKING:
    from yolofleet.training.evaluation.early_stop import EarlyStopping


@dataclass(frozen=True)
class Learner:
    """What learns, and how."""

    model: Network
    """The network, in training form."""
    average: WeightAverage
    """The moving average of its weights."""
    loss: DetectionLoss
    """The loss of a micro-batch."""
    precision: Precision
    """The type of each computation."""
    statistics: MicroBatchStatistics
    """Batch-norm statistics over the micro-batches of a step."""
    strategy: Strategy
    """What each worker holds of gradients and optimiser, and how gradients are summed."""


@dataclass(frozen=True)
class WorkerData:
    """What one worker is trained on."""

    stream: TrainingStream
    """The micro-batches of all steps."""
    owned: range
    """Those of each step that are this worker's."""
    log: SampleLog
    """The record of what the network saw."""
    skipped: SkippedSamples
    """The samples that could not be read, over all workers."""


@dataclass(frozen=True)
class Meters:
    """What is measured along the way."""

    terms: LossTerms
    """Means of the loss terms."""
    pace: Pace
    """Speed, and what holds it back."""
    restart_cost: RestartCost | None
    """What a restart cost; None on all workers but the first."""
    readings: list[Reading] = field(default_factory=list)
    """What the newest step computed, until the host has read it; at most one."""


@dataclass(frozen=True)
class Trainer:
    """One worker's part of a run, from the step where the run directory stands."""

    job: JobSpec
    """What is computed."""
    run: RunDirectory
    group: WorkerGroup
    """This worker."""
    learner: Learner
    """The model and what trains it."""
    data: WorkerData
    """What it is trained on."""
    schedule: Schedule
    """Learning rates and momentum by step."""
    milestones: Milestones
    """The steps that log, evaluate and save."""
    state: RunState
    """Where the run stands."""
    store: CheckpointStore
    guard: FiniteGuard
    """Watches for non-finite steps."""
    stopping: EarlyStopping | None
    """Says when the run is over before its last step, where the job asks for it."""
    meters: Meters
    """Speed, loss, and the cost of a restart."""


def build_trainer(job: JobSpec, run: RunDirectory, group: WorkerGroup) -> Trainer:
    """Build everything, restore the newest whole checkpoint, and remove what the run directory holds beyond it.

    A collective: every worker calls it.

    Raises:
        UserError: The job does not fit the data or the checkpoint.
    """
    began = time.monotonic()
    dataset = open_dataset(job.data, job.data.train)
    schedule = Schedule.of_run(job, len(dataset), run.facts())
    store = CheckpointStore(
        run.storage.child("checkpoints"),
        job.checkpoint.keep,
        on_event=run.append_event,
        before_commit=run.flush,
        check_lock=run.check_lock,
    )
    learner, state = _restore_learner(job, run, group, dataset, store, schedule)
    guard = FiniteGuard(group, job.most_non_finite_steps)
    evaluations = CheckpointEvaluations(run, store, job.stop)
    store.protected_steps = lambda files: evaluations.protected_steps(files) | guard.protected_steps(files)

    peak = find_peak(group.device, learner.precision.arithmetic)
    # The first worker removes the rows of steps that are done again; the others must not read or write meanwhile.
    restart_cost = None
    if group.is_first:
        restart_cost = RestartCost(run, state.step, group)
        run.truncate_metrics_after(state.step)
        remove_rows_from(run.storage.child(FOLDER), state.step)
        ready = {
            "workers": group.world_size,
            "gpus_per_worker": job.cluster.gpus_per_worker,
            "device": torch.cuda.get_device_name()
            if job.cluster.gpus_per_worker and torch.cuda.is_available()
            else "CPU",
            "price_per_hour": job.cluster.price_per_hour,
            "prepared_seconds": round(time.monotonic() - began, 3),
            **restart_cost.reached,
            **peak.document(),
        }
        run.append_event("start", step=state.step, num_steps=schedule.num_steps, **ready)
        restart_cost.begin()
    group.barrier()
    skipped = SkippedSamples(run.storage)
    skipped.update()
    state.skipped_samples = group.first_value(skipped.total)  # includes those since the last row of metrics
    stopping = None
    if job.stop is not None:
        from yolofleet.training.evaluation.early_stop import EarlyStopping

        stopping = EarlyStopping(job.stop, run, group)
    group.barrier()
    owned = assign_micro_batches(job.num_micro_batches, group.rank, group.world_size, job.batch_norm_workers)
    pace = Pace(group, len(owned), _flops_per_pixel(job, run, dataset), peak.flops)
    pace.watch(learner.model)

    return Trainer(
        job=job,
        run=run,
        group=group,
        learner=learner,
        data=WorkerData(
            stream=training_stream(job, dataset, schedule, run_deal(run), lambda: run_image_weights(run, len(dataset))),
            owned=owned,
            log=SampleLog(run.storage, group.rank, record_digests=job.record_samples, check_lock=run.check_lock),
            skipped=skipped,
        ),
        schedule=schedule,
        milestones=Milestones.of_job(job, len(dataset), (plan.until_step for plan in schedule.earlier)),
        stopping=stopping,
        state=state,
        store=store,
        guard=guard,
        meters=Meters(LossTerms(group), pace, restart_cost),
    )


def _restore_learner(
    job: JobSpec,
    run: RunDirectory,
    group: WorkerGroup,
    dataset: ShardDataset,
    store: CheckpointStore,
    schedule: Schedule,
) -> tuple[Learner, RunState]:
    """Build the learner as the newest whole checkpoint has it; returns it and where the run stands."""
    hyperparameters = schedule.hyperparameters
    precision = Precision(job.precision, group.device)
    torch.manual_seed(job.seed)
    model = build_model(run_table(job, run), num_classes=len(dataset.classes)).to(group.device, precision.parameters)
    if job.initial_weights is not None:
        from yolofleet.training.setup.pretrained import load_initial

        load_initial(run.storage, model)
    freeze_blocks(model.train(), job.freeze)
    lay_channels_innermost(model)
    if job.memory != "fast" or group.first_value(int(group.is_first and bool(run.storage.list("out_of_memory/")))):
        from yolofleet.training.loop.out_of_memory import save_memory

        save_memory(job, run, group, model)
    loss = build_loss(model, hyperparameters, job.data.image_size, job.assignment, dataset.manifest.class_counts)
    optimizer = build_optimizer(model, hyperparameters, job.global_batch_size)
    statistics = MicroBatchStatistics(model)
    average = WeightAverage(model, hyperparameters, statistics.running)
    earlier_epochs = [plan.epochs for plan in schedule.earlier]
    state = restore(store, job, group, model, average, optimizer, precision, earlier_epochs)
    state.skipped_windows = skipped_windows(run)
    statistics.reload()
    if job.batch_norm_workers > 1:
        from yolofleet.training.strategies.synchronised_norm import synchronise_batch_norm

        synchronise_batch_norm(model, job.batch_norm_workers, group)
    if group.is_first:
        prepare(store, model, average, optimizer)
    if job.compile != "off" and model.memory_saving is None:
        torch.compiler.reset()  # the graphs of an earlier run in this process count towards torch's limit
        # Sizes that change are symbols, so that it is compiled once.
        model.compile(fullgraph=True, dynamic=hyperparameters.multi_scale > 0)
        if job.compile == "full":
            loss.compile(dynamic=False)
    # Last, for a strategy takes over the restored weights and moments.
    strategy = build_strategy(job, model, optimizer, precision, group)
    return Learner(model, average, loss, precision, statistics, strategy), state


def _flops_per_pixel(job: JobSpec, run: RunDirectory, dataset: ShardDataset) -> float:
    """Return the operations of the forward pass for one pixel: those of its convolutions grow with the area."""
    size = (job.data.image_size, job.data.image_size)
    return (
        cost(wire(run_table(job, run)), num_classes=len(dataset.classes), size=size).gflops * GIGA / (size[0] * size[1])
    )
