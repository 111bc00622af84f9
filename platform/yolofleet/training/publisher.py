"""A thread of the driver that publishes a run's figures on Ray's metrics endpoint, where Prometheus reads them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from yolofleet.specs.job import JobSpec
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.run_directory import RunDirectory, utc_now
from yolofleet.training.attendance import Member
from yolofleet.training.run_metrics import METRICS, RUN_TAG, Reading, account_readings, member_readings

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
