"""The run's metrics for Prometheus: a thread of the driver publishes them on Ray's metrics endpoint.

Only the driver publishes: it hears every worker each second and reads the run's events, so the training loop needs no
Ray and pays nothing. What the run directory counts (failures, what they cost) is published as it stands there, so these
gauges continue where they were after the driver itself was started again.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from yolofleet.core.background import BackgroundLoop
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.goodput import summarize_run
from yolofleet.tracking.json_lines import Row, utc_now
from yolofleet.tracking.run_directory import EVENTS_LOGS, RunDirectory
from yolofleet.training.loop.pace import STAGES
from yolofleet.training.supervision.heartbeats import WorkerStatus

PUBLISH_SECONDS = 5.0
ANSWER_TIMEOUT_SECONDS = 10.0
RUN_TAG = "run"
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "yolofleet_step": ("Steps done.", ()),
    "yolofleet_planned_steps": ("Steps of the whole run.", ()),
    "yolofleet_last_step_age_seconds": ("Time since the run last advanced by a step, restarts included.", ()),
    "yolofleet_workers": ("Workers that report heartbeats.", ()),
    "yolofleet_worker_silence_seconds": ("Time since a worker last made progress.", ("rank",)),
    "yolofleet_gpu_memory_used_bytes": ("Used memory of a worker's GPU.", ("rank",)),
    "yolofleet_gpu_memory_total_bytes": ("Memory of a worker's GPU.", ("rank",)),
    "yolofleet_images_per_second": ("Images that all workers train on in a second.", ()),
    "yolofleet_step_seconds": ("Time of a step, mean since the last row of metrics.", ()),
    "yolofleet_data_wait_seconds": ("Time of a step that the workers wait for data, mean over them.", ()),
    "yolofleet_stage_share": ("Share of the workers' time in a stage of the step.", ("stage",)),
    "yolofleet_model_flops_utilization": ("Share of the devices' peak that the model's operations reach.", ()),
    "yolofleet_teraflops_per_second": ("Operations of the model that all workers do in a second, in 10^12.", ()),
    "yolofleet_slowest_rank_excess": (
        "Time that the slowest worker needs beyond the usual one, as a share.",
        ("rank",),
    ),
    "yolofleet_loss": ("The loss and its terms, means since the last row of metrics.", ("term",)),
    "yolofleet_average_precision": ("COCO AP of the averaged model, where the workers evaluate it.", ()),
    "yolofleet_skipped_samples": ("Samples that could not be read.", ()),
    "yolofleet_non_finite_steps": ("Steps that were skipped because loss or gradient was non-finite.", ()),
    "yolofleet_goodput": ("Share of the training time that was not lost.", ()),
    "yolofleet_lost_seconds": ("Time from failures until the run was as far again as before.", ()),
    "yolofleet_gpu_hours": ("GPU hours so far, those of restarts included.", ()),
    "yolofleet_cost": ("What the workers cost so far, where the job names their price.", ()),
    "yolofleet_starts": ("How often workers were started.", ()),
    "yolofleet_failures": ("Failures by kind: worker, preemption, start.", ("kind",)),
    "yolofleet_checkpoint_step": ("Step of the newest checkpoint.", ()),
    "yolofleet_checkpoint_seconds": ("How long the newest checkpoint took to be stored, beside the training.", ()),
    "yolofleet_checkpoint_troubles": ("Checkpoints by trouble: failed, skipped, passed_over.", ("kind",)),
}
"""Name, meaning, and the tags beside the run's name."""
LOSS_TERMS = {
    "loss": "all",
    "loss_box": "box",
    "loss_objectness": "objectness",
    "loss_classification": "classification",
}
PLAIN_METRICS = {
    "val_AP": "yolofleet_average_precision",
    "skipped_samples": "yolofleet_skipped_samples",
    "non_finite_steps": "yolofleet_non_finite_steps",
    "model_flops_utilization": "yolofleet_model_flops_utilization",
    "teraflops_per_second": "yolofleet_teraflops_per_second",
}
FAILURE_KINDS = ("worker", "preemption", "start")
TROUBLES = ("failed", "skipped", "passed_over")


@dataclass(frozen=True)
class Reading:
    """One value."""

    name: str
    """One of `METRICS`."""
    value: float
    tags: Mapping[str, str] = field(default_factory=dict)
    """Its tags beside the run's name."""


def worker_readings(job: JobSpec, now: float, workers: Sequence[WorkerStatus]) -> Iterator[Reading]:
    """Yield what the workers report.

    Args:
        job: What they train.
        now: The time by the heartbeat board's clock.
        workers: Their last reports.
    """
    yield Reading("yolofleet_workers", len(workers))
    for worker in workers:
        rank = {"rank": str(worker.rank)}
        silence = max(0.0, worker.silence_seconds) + max(0.0, now - worker.received_at)
        yield Reading("yolofleet_worker_silence_seconds", silence, rank)
        if worker.gpu_total_bytes:
            yield Reading("yolofleet_gpu_memory_used_bytes", worker.gpu_used_bytes, rank)
            yield Reading("yolofleet_gpu_memory_total_bytes", worker.gpu_total_bytes, rank)
    first = next((worker for worker in workers if worker.rank == 0), None)
    if first is not None:
        yield Reading("yolofleet_step", first.step)
        yield from training_readings(job, first)


def training_readings(job: JobSpec, first: WorkerStatus) -> Iterator[Reading]:
    """Yield what the first worker's training reported."""
    metrics = {name: float(value) for name, value in first.metrics.items() if isinstance(value, int | float)}
    rate = metrics.get("samples_per_second", 0.0)
    if rate > 0:
        step_seconds = job.global_batch_size / rate
        yield Reading("yolofleet_step_seconds", step_seconds)
        yield Reading("yolofleet_images_per_second", rate)
        yield Reading("yolofleet_data_wait_seconds", step_seconds * metrics.get("data_wait_share", 0.0))
    for stage in STAGES:
        if (share := metrics.get(f"{stage}_share")) is not None:
            yield Reading("yolofleet_stage_share", share, {"stage": stage})
    if "slowest_rank" in metrics:
        rank = {"rank": str(int(metrics["slowest_rank"]))}
        yield Reading("yolofleet_slowest_rank_excess", metrics.get("slowest_rank_excess", math.nan), rank)
    for name, term in LOSS_TERMS.items():
        if name in metrics:
            yield Reading("yolofleet_loss", metrics[name], {"term": term})
    for name, metric in PLAIN_METRICS.items():
        if name in metrics:
            yield Reading(metric, metrics[name])


def run_readings(events: Sequence[Row], time_now: str) -> Iterator[Reading]:
    """Yield what happened to the run, by its events.

    Args:
        events: All of them, oldest first.
        time_now: The time in UTC, ISO 8601: until then a running run has trained.
    """
    summary = summarize_run(events, [{"time": time_now}])
    yield Reading("yolofleet_starts", summary.starts)
    yield Reading("yolofleet_lost_seconds", summary.seconds_lost)
    yield Reading("yolofleet_gpu_hours", summary.gpu_hours)
    if summary.cost is not None:
        yield Reading("yolofleet_cost", summary.cost)
    if summary.goodput is not None:
        yield Reading("yolofleet_goodput", summary.goodput)
    for kind in FAILURE_KINDS:
        yield Reading("yolofleet_failures", summary.failures.get(kind, 0), {"kind": kind})
    kinds = Counter(str(event.get("kind")) for event in events)
    for trouble in TROUBLES:
        yield Reading("yolofleet_checkpoint_troubles", kinds[f"checkpoint_{trouble}"], {"kind": trouble})
    if (start := _newest(events, "start")) is not None:
        yield Reading("yolofleet_planned_steps", float(start.get("num_steps", math.nan)))
    if (stored := _newest(events, "checkpoint")) is not None:
        yield Reading("yolofleet_checkpoint_step", float(stored.get("step", math.nan)))
        yield Reading("yolofleet_checkpoint_seconds", float(stored.get("seconds", math.nan)))


def _newest(events: Sequence[Row], kind: str) -> Row | None:
    return next((event for event in reversed(events) if event.get("kind") == kind), None)


ListWorkers = Callable[[], tuple[float, list[WorkerStatus]]]


class Gauges(Protocol):
    """Where readings go."""

    def set(self, reading: Reading) -> None:
        """Take a reading in place of the one before it."""


class RayGauges:
    """Gauges of this process on the metrics endpoint of its node; Ray puts ``ray_`` before their names."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._run = run
        self._gauges = {name: Gauge(name, text, (RUN_TAG, *tags)) for name, (text, tags) in METRICS.items()}

    def set(self, reading: Reading) -> None:
        """Take a reading in place of the one before it."""
        self._gauges[reading.name].set(reading.value, tags={RUN_TAG: self._run, **reading.tags})


class Publisher:
    """Publishes a run's readings.

    Args:
        job: What is trained.
        run: Its run directory.
        list_workers: Returns the time and the workers' last reports.
        gauges: Where readings go.
        clock: Seconds since any moment.
    """

    def __init__(
        self,
        job: JobSpec,
        run: RunDirectory,
        list_workers: ListWorkers,
        gauges: Gauges,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._run = run
        self._list_workers = list_workers
        self._gauges = gauges
        self._clock = clock
        self._events: Sequence[Row] = ()
        self._event_reader = run.reader(*EVENTS_LOGS)
        self._step = -1
        self._advanced_at = clock()
        self._published: dict[tuple[str, frozenset[tuple[str, str]]], Reading] = {}

    def publish(self) -> None:
        """Publish the run's readings now; those that no longer exist, of a worker that is gone, become NaN."""
        readings = [*worker_readings(self._job, *self._list_workers())]
        step = max((int(reading.value) for reading in readings if reading.name == "yolofleet_step"), default=-1)
        if step > self._step:
            self._step, self._advanced_at = step, self._clock()
        readings.append(Reading("yolofleet_last_step_age_seconds", self._clock() - self._advanced_at))
        if self._event_reader.new_rows(only_due=True):
            self._events = self._run.events()
        readings += run_readings(self._events, utc_now())
        now = {(reading.name, frozenset(reading.tags.items())): reading for reading in readings}
        self._withdraw([known for key, known in self._published.items() if key not in now])
        for reading in readings:
            self._gauges.set(reading)
        self._published = now

    def end(self) -> None:
        """Withdraw everything: the process may continue with another run."""
        self._withdraw(self._published.values())
        self._published = {}

    def _withdraw(self, readings: Iterable[Reading]) -> None:
        for reading in readings:
            self._gauges.set(Reading(reading.name, math.nan, reading.tags))


@contextmanager
def publish_metrics(job: JobSpec, run: RunDirectory, board: Any) -> Iterator[None]:
    """Publish a run's metrics for the length of a with block."""
    import ray

    def list_workers() -> tuple[float, list[WorkerStatus]]:
        now, workers = ray.get(board.workers.remote(), timeout=ANSWER_TIMEOUT_SECONDS)
        return float(now), workers

    publisher = Publisher(job, run, list_workers, RayGauges(job.name))
    warning = "the run's metrics cannot be published at the moment"
    try:
        with BackgroundLoop(publisher.publish, seconds=PUBLISH_SECONDS, name="metrics-publisher", warning=warning):
            yield
    finally:
        publisher.end()
