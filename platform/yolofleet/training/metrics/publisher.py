"""A thread of the driver that publishes a run's figures on Ray's metrics endpoint, where Prometheus reads them.

The figures of a run that a monitoring system sees: what they are called, and how they come from what is known.

The driver alone publishes them: it hears every worker each second and reads the run's
events, so the training loop needs no Ray and pays nothing. What the run directory counts (failures, what they cost) is
published as it stands there, a gauge that goes on where it was after the driver itself was started again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from yolofleet.specs.job import JobSpec
from yolofleet.tracking.goodput import survival
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.run_directory import RunDirectory, utc_now
from yolofleet.training.supervision.heartbeats import Member

RUN_TAG = "run"
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "yolofleet_step": ("Steps done.", ()),
    "yolofleet_planned_steps": ("Steps of the whole run.", ()),
    "yolofleet_last_step_age_seconds": ("Time since the run last got a step further, restarts included.", ()),
    "yolofleet_workers": ("Workers that report themselves.", ()),
    "yolofleet_worker_silence_seconds": ("For how long a worker's training has not moved.", ("rank",)),
    "yolofleet_gpu_memory_used_bytes": ("Memory of a worker's GPU that is taken.", ("rank",)),
    "yolofleet_gpu_memory_total_bytes": ("Memory of a worker's GPU.", ("rank",)),
    "yolofleet_images_per_second": ("Images that all workers train on in a second.", ()),
    "yolofleet_step_seconds": ("Time of a step, mean since the last row of metrics.", ()),
    "yolofleet_data_wait_seconds": ("Time of a step that the first worker waits for data.", ()),
    "yolofleet_loss": ("The loss and its terms, means since the last row of metrics.", ("term",)),
    "yolofleet_average_precision": ("COCO AP of the averaged model, where the workers judge it.", ()),
    "yolofleet_skipped_samples": ("Samples that could not be read.", ()),
    "yolofleet_non_finite_steps": ("Steps that were left out because their numbers were not finite.", ()),
    "yolofleet_goodput": ("Share of the training time that was not lost.", ()),
    "yolofleet_lost_seconds": ("Time from failures until the run was again as far as it had been.", ()),
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
PLAIN_FIGURES = {
    "val_AP": "yolofleet_average_precision",
    "skipped_samples": "yolofleet_skipped_samples",
    "non_finite_steps": "yolofleet_non_finite_steps",
}
FAILURE_KINDS = ("worker", "preemption", "start")
TROUBLES = ("failed", "skipped", "passed_over")


@dataclass(frozen=True)
class Reading:
    """One value.

    Attributes:
        name: One of `METRICS`.
        value: Its value.
        tags: Its tags beside the run's name.
    """

    name: str
    value: float
    tags: Mapping[str, str] = field(default_factory=dict)


def member_readings(job: JobSpec, now: float, members: Sequence[Member]) -> Iterator[Reading]:
    """Give what the workers say of themselves.

    Args:
        job: What they train.
        now: The time, by the clock of their list.
        members: Everyone's last report.
    """
    yield Reading("yolofleet_workers", len(members))
    for member in members:
        rank = {"rank": str(member.rank)}
        silence = max(0.0, member.silence_seconds) + max(0.0, now - member.heard_at)
        yield Reading("yolofleet_worker_silence_seconds", silence, rank)
        if member.gpu_total_bytes:
            yield Reading("yolofleet_gpu_memory_used_bytes", member.gpu_used_bytes, rank)
            yield Reading("yolofleet_gpu_memory_total_bytes", member.gpu_total_bytes, rank)
    first = next((member for member in members if member.rank == 0), None)
    if first is not None:
        yield Reading("yolofleet_step", first.step)
        yield from figure_readings(job, first)


def figure_readings(job: JobSpec, first: Member) -> Iterator[Reading]:
    """Give what the first worker's training reported."""
    figures = {name: float(value) for name, value in first.figures.items() if isinstance(value, int | float)}
    rate = figures.get("samples_per_second", 0.0)
    if rate > 0:
        step_seconds = job.global_batch_size / rate
        yield Reading("yolofleet_step_seconds", step_seconds)
        yield Reading("yolofleet_images_per_second", rate)
        yield Reading("yolofleet_data_wait_seconds", step_seconds * figures.get("data_wait_share", 0.0))
    for name, term in LOSS_TERMS.items():
        if name in figures:
            yield Reading("yolofleet_loss", figures[name], {"term": term})
    for name, metric in PLAIN_FIGURES.items():
        if name in figures:
            yield Reading(metric, figures[name])


def account_readings(events: Sequence[Row], time_now: str) -> Iterator[Reading]:
    """Give what the run went through, by its events.

    Args:
        events: All of them, oldest first.
        time_now: The time in UTC, ISO 8601: how long a run that goes on has trained.
    """
    account = survival(events, [{"time": time_now}])
    yield Reading("yolofleet_starts", account.starts)
    yield Reading("yolofleet_lost_seconds", account.seconds_lost)
    if account.goodput is not None:
        yield Reading("yolofleet_goodput", account.goodput)
    for kind in FAILURE_KINDS:
        yield Reading("yolofleet_failures", account.failures.get(kind, 0), {"kind": kind})
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


PUBLISH_SECONDS = 5.0
EVENTS_SECONDS = 10.0
"""How often the run's events are looked for: on an object store that is a request."""
ANSWER_TIMEOUT_SECONDS = 10.0

logger = logging.getLogger(__name__)

ListMembers = Callable[[], tuple[float, list[Member]]]


class Gauges(Protocol):
    """Where readings go."""

    def set(self, reading: Reading) -> None:
        """Take a reading in place of the one before it."""


class RayGauges:
    """Gauges of this process on the metrics endpoint of its node; Ray puts ``ray_`` before their names.

    Args:
        run: The run's name, the tag of all of them.
    """

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._run = run
        self._gauges = {name: Gauge(name, text, (RUN_TAG, *tags)) for name, (text, tags) in METRICS.items()}

    def set(self, reading: Reading) -> None:
        """Take a reading in place of the one before it."""
        self._gauges[reading.name].set(reading.value, tags={RUN_TAG: self._run, **reading.tags})


class Publisher:
    """What is published of a run, one reading after the other.

    Args:
        job: What is trained.
        run: Its run directory.
        list_members: Returns the time and the workers' last reports.
        gauges: Where readings go.
        clock: Seconds since any moment.
    """

    def __init__(
        self,
        job: JobSpec,
        run: RunDirectory,
        list_members: ListMembers,
        gauges: Gauges,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._run = run
        self._list_members = list_members
        self._gauges = gauges
        self._clock = clock
        self._events: Sequence[Row] = ()
        self._events_size_bytes = -1
        self._next_events = -math.inf
        self._step = -1
        self._moved_at = clock()
        self._published: dict[tuple[str, frozenset[tuple[str, str]]], Reading] = {}

    def publish(self) -> None:
        """Publish how the run stands now; what is no longer known of, a worker that is gone, becomes NaN."""
        readings = [*member_readings(self._job, *self._list_members())]
        step = max((int(reading.value) for reading in readings if reading.name == "yolofleet_step"), default=-1)
        if step > self._step:
            self._step, self._moved_at = step, self._clock()
        readings.append(Reading("yolofleet_last_step_age_seconds", self._clock() - self._moved_at))
        self._read_events()
        readings += account_readings(self._events, utc_now())
        now = {(reading.name, frozenset(reading.tags.items())): reading for reading in readings}
        self._forget(key for key in self._published if key not in now)
        for reading in readings:
            self._gauges.set(reading)
        self._published = now

    def end(self) -> None:
        """Withdraw everything: a process may go on with another run, and what stands still is not this one's."""
        self._forget(self._published)
        self._published = {}

    def _forget(self, keys: Any) -> None:
        for key in keys:
            known = self._published[key]
            self._gauges.set(Reading(known.name, math.nan, known.tags))

    def _read_events(self) -> None:
        if self._clock() < self._next_events:
            return
        size_bytes = self._run.events_size_bytes()
        if size_bytes != self._events_size_bytes:
            self._events = self._run.events()
        self._events_size_bytes = size_bytes
        self._next_events = self._clock() + EVENTS_SECONDS


@contextmanager
def publishing(job: JobSpec, run: RunDirectory, attendance: Any) -> Iterator[None]:
    """Publish a run's figures for the length of a with block.

    Args:
        job: What is trained.
        run: Its run directory.
        attendance: The handle of the actor with the list of workers.
    """
    import ray

    def list_members() -> tuple[float, list[Member]]:
        now, members = ray.get(attendance.members.remote(), timeout=ANSWER_TIMEOUT_SECONDS)
        return float(now), members

    publisher = Publisher(job, run, list_members, RayGauges(job.name))
    over = threading.Event()

    def publish() -> None:
        failing = False
        while not over.wait(PUBLISH_SECONDS):
            try:
                publisher.publish()
                failing = False
            except Exception as error:  # whatever fails, training goes on without its metrics
                if not failing:
                    logger.warning("the run's metrics cannot be published at the moment: %s", error)
                failing = True

    thread = threading.Thread(target=publish, name="metrics-publisher", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=ANSWER_TIMEOUT_SECONDS)
        publisher.end()
