"""The forecast of one run before it starts: steps, compute, hours, GPU hours and cost, and what of it is not known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolofleet.cluster.scaling import Link, ScalingPoint, StepWork, advised_workers, scaling_curve, step_seconds
from yolofleet.models.memory import FLOAT32_BYTES, STRATEGIES, Strategy
from yolofleet.models.profile import GIGA, cost
from yolofleet.models.wiring import ModelGraph
from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.milestones import Milestones
from yolofleet.training.loop.pace import TRAINING_PASSES
from yolofleet.training.metrics.rate import Rate, busiest_share
from yolofleet.training.setup.micro_batch import forecast

WORKER_COUNTS = (1, 2, 4, 8, 16, 32, 64)
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MEMORY_SHARE = 0.9
"""Of a device's memory; the rest is for the workspaces of kernels, and what is left between tensors."""


@dataclass(frozen=True)
class RunForecast:
    """What a run will take; None where that is not known."""

    workers: int
    num_steps: int
    petaflops: float
    """Operations of the whole training, in units of 10^15."""
    seconds_per_step: float | None
    wall_hours: float | None
    """Training and evaluations, without start-up, failures and waiting for room."""
    evaluation_hours: float | None
    """Of that, the passes of the evaluations, where the rate does not cover them."""
    worker_hours: float | None
    gpu_hours: float | None
    cost: float | None
    unknown: tuple[str, ...]
    """What is not in it, a line each."""


def step_work(job: JobSpec, graph: ModelGraph, num_classes: int, rate: Rate) -> StepWork:
    """Return what a step of a job is made of, by a measured rate."""
    size = (job.data.image_size, job.data.image_size)
    return StepWork(
        micro_batches=job.num_micro_batches,
        seconds_per_micro_batch=rate.seconds_per_micro_batch,
        backward_seconds=rate.stages.get("backward", 0.0) / rate.micro_batches,
        seconds_once=rate.seconds_once,
        gradient_bytes=cost(graph, num_classes=num_classes, size=size).parameters * FLOAT32_BYTES,
        every_micro_batch=job.strategy == "zero2",
    )


def forecast_run(
    job: JobSpec,
    graph: ModelGraph,
    *,
    num_classes: int,
    images: int,
    validation_images: int,
    workers: int,
    rate: Rate | None,
    link: Link | None,
) -> RunForecast:
    """Forecast a run.

    Args:
        job: What shall be trained.
        graph: Its model.
        num_classes: Classes of its data.
        images: Images of the training set.
        validation_images: Images of the validation set.
        workers: Workers that train.
        rate: How long a step takes; None: not known.
        link: What joins the workers; None: not known.
    """
    num_steps = job.num_steps(images)
    size = (job.data.image_size, job.data.image_size)
    gflops = cost(graph, num_classes=num_classes, size=size).gflops
    petaflops = TRAINING_PASSES * gflops * GIGA * num_steps * job.global_batch_size / 1e15
    if rate is None:
        command = "yolofleet train JOB --measure --json > rate.json"
        reason = f"time and cost: measure a step on a machine like those that will train ({command})"
        return RunForecast(workers, num_steps, petaflops, None, None, None, None, None, None, (reason,))
    measured_as_planned = workers == rate.workers and busiest_share(job, workers) == rate.micro_batches
    if measured_as_planned:
        seconds = rate.seconds_per_step
    else:
        seconds = step_seconds(step_work(job, graph, num_classes, rate), workers, link)
    training, evaluation = num_steps * seconds / 3600, None
    unknown = ["start-up, failures, waiting for room and for data that is fetched for the first time"]
    if not rate.covers_evaluation:
        forward = rate.stages.get("forward")
        if forward is not None:
            per_image = forward / (rate.micro_batches * job.resolved_micro_batch_size)
            evaluations = Milestones.of_job(job, images).num_evaluations(0, num_steps)
            evaluation = evaluations * validation_images * per_image / workers / 3600
            unknown.append("time of evaluations and checkpoints beyond the forward passes")
        else:
            unknown.append("evaluations and checkpoints")
    if workers > 1 and link is None and not measured_as_planned:
        unknown.append(
            "the exchange of gradients: give --exchange-bandwidth, as 'yolofleet cluster doctor' measures it"
        )
    hours = training + (evaluation or 0.0)
    price = job.cluster.price_per_hour
    if price is None:
        unknown.append("cost: the job has no cluster.price_per_hour")
    return RunForecast(
        workers=workers,
        num_steps=num_steps,
        petaflops=petaflops,
        seconds_per_step=seconds,
        wall_hours=hours,
        evaluation_hours=evaluation,
        worker_hours=hours * workers,
        gpu_hours=hours * workers * job.cluster.gpus_per_worker,
        cost=None if price is None else hours * workers * price,
        unknown=tuple(unknown),
    )


@dataclass(frozen=True)
class Advice:
    """What a job might ask for."""

    curve: tuple[ScalingPoint, ...]
    """Numbers of workers, and what each gives; empty without a rate."""
    workers: int | None
    """The most that still earn their cost; None without a rate."""
    micro_batch_size: int | None
    """The largest that fits a device's memory and divides the global batch; None where the memory is not known."""
    strategy: Strategy | None
    """The first of ddp, zero1, zero2 that the job's own micro-batch fits with; None where none does, or not known."""


def advise(
    job: JobSpec,
    graph: ModelGraph,
    *,
    num_classes: int,
    workers: int,
    rate: Rate | None,
    link: Link | None,
    memory_bytes: int | None,
    counts: Sequence[int] = WORKER_COUNTS,
) -> Advice:
    """Advise batch, workers and strategy of a job.

    Args:
        job: What shall be trained.
        graph: Its model.
        num_classes: Classes of its data.
        workers: Workers that share optimiser state under ZeRO.
        rate: How long a step takes; None: nothing is said of workers.
        link: What joins the workers.
        memory_bytes: Memory of a worker's device; None: nothing is said of batch and strategy.
        counts: Numbers of workers to look at.
    """
    curve: list[ScalingPoint] = []
    if rate is not None:
        curve = scaling_curve(step_work(job, graph, num_classes, rate), counts, link)
    batch: int | None = None
    strategy: Strategy | None = None
    if memory_bytes is not None:
        room = memory_bytes * MEMORY_SHARE

        def needed(micro_batch_size: int, chosen: Strategy) -> int:
            return forecast(job.model_copy(update={"strategy": chosen}), num_classes, micro_batch_size, workers).total

        fitting = [size for size in MICRO_BATCHES if job.global_batch_size % size == 0]
        batch = max((size for size in fitting if needed(size, job.strategy) <= room), default=None)
        strategy = next((entry for entry in STRATEGIES if needed(job.resolved_micro_batch_size, entry) <= room), None)
    return Advice(tuple(curve), advised_workers(curve) if curve else None, batch, strategy)
