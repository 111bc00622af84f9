"""The figures of a run that a monitoring system sees: what they are called, and how they come from what is known.

The driver alone publishes them (yolofleet.training.publisher): it hears every worker each second and reads the run's
events, so the training loop needs no Ray and pays nothing. What the run directory counts (failures, what they cost) is
published as it stands there, a gauge that goes on where it was after the driver itself was started again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from yolofleet.specs.job import JobSpec
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.survival import survival
from yolofleet.training.attendance import Member

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
