"""One leg of a trial, in the process that trains it: from where the run directory stands to a share of the run.

A trial with one worker runs the loop here, in the process that holds its resources; only one with more workers starts
Ray Train, inside it. Whatever was lost, the next leg of the same run goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from yolofleet.errors import UserError, WorkError
from yolofleet.specs.job import JobSpec
from yolofleet.storage.holder import Token
from yolofleet.storage.lock import Lock, PlaceHeldError, hold
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.group import WorkerGroup
from yolofleet.training.preflight import Readiness, check_job, run_storage
from yolofleet.training.process import local_device
from yolofleet.training.progress import Milestones
from yolofleet.training.pulse import Pulse
from yolofleet.training.worker import run_worker

LONGEST_WAIT_SECONDS = 120.0
"""How long a leg waits for the process of a lost driver to end before it takes its run over."""
HOLD_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Order:
    """What a trial's process is told; plain values, so that any process can take it.

    Attributes:
        job: The job of the run, as a document.
        share: How far to train.
        objectives: Metrics that must be there at the end.
    """

    job: dict[str, Any]
    share: float
    objectives: list[str]

    def text(self) -> str:
        """Return the order as JSON."""
        return json.dumps(asdict(self))


def run_leg(text: str) -> dict[str, Any]:
    """Do what an order says; returns the fields of `yolofleet.search.engine.Result`."""
    order = Order(**json.loads(text))
    job = JobSpec.parse(order.job, source="trial")
    begin = time.monotonic()
    try:
        with _held(job) as lock:
            ready = check_job(job)
            last_step = leg_end(job, ready, order.share)
            if ready.done_steps < last_step:
                _train(job, last_step, ready.num_steps, lock.token)
            measured = newest_metrics(ready.run, last_step)
            _check_reported(measured, order.objectives, job)
    except (UserError, WorkError) as error:
        return {"failure": " ".join(str(error).split())[:1000], "gpu_seconds": _cost(job, begin)}
    return {
        "step": last_step,
        "share": last_step / ready.num_steps,
        "measured": measured,
        "gpu_seconds": _cost(job, begin),
    }


def leg_end(job: JobSpec, ready: Readiness, share: float) -> int:
    """Return the step at which a leg ends: the first evaluation at or after a share of the run."""
    steps_per_epoch = len(ready.train) / job.global_batch_size
    milestones = Milestones(
        num_steps=ready.num_steps,
        log_every_steps=job.log_every_steps,
        checkpoint_every_steps=job.checkpoint.period_steps,
        evaluation_every_steps=job.evaluation.every_epochs * steps_per_epoch,
    )
    step = max(1, math.ceil(share * ready.num_steps - 1e-9))
    while not milestones.evaluates(step):
        step += 1
    return step


def newest_metrics(run: RunDirectory, last_step: int) -> dict[str, float]:
    """Return the newest finite number of every metric up to a step."""
    newest: dict[str, float] = {}
    for row in run.metrics():
        if int(row.get("step", 0)) <= last_step:
            newest |= {
                key: float(value)
                for key, value in row.items()
                if key != "step" and isinstance(value, int | float) and math.isfinite(value)
            }
    return newest


def _train(job: JobSpec, last_step: int, num_steps: int, token: Token) -> None:
    pause = None if last_step >= num_steps else last_step
    if job.cluster.most_workers > 1:
        from yolofleet.training.launch import run_on_ray

        run_on_ray(job, token, leave_after_step=pause)
        return
    device = local_device(job)
    run_worker(job, WorkerGroup(device=device, pulse=Pulse(leave_after_step=pause)), token)
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()  # the process goes on with other trials, perhaps beside others on this GPU


def _check_reported(measured: dict[str, float], objectives: list[str], job: JobSpec) -> None:
    if missing := [name for name in objectives if name not in measured]:
        known = ", ".join(sorted(measured)) or "nothing"
        raise WorkError(
            f"{', '.join(missing)}: {job.name} reported no number for it (it reported {known}). AP is no number where "
            "the validation set has no objects"
        )


@contextmanager
def _held(job: JobSpec) -> Iterator[Lock]:
    """Hold the run; the process that held it for a driver that died may need a moment to end."""
    storage = run_storage(job)
    end = time.monotonic() + LONGEST_WAIT_SECONDS
    while True:
        try:
            lock = hold(storage)
            break
        except PlaceHeldError:
            if time.monotonic() > end:
                raise
            time.sleep(HOLD_POLL_SECONDS)
    with lock:
        yield lock


def _cost(job: JobSpec, begin: float) -> float:
    """Return worker seconds: GPU seconds where the workers have GPUs."""
    per_worker = job.cluster.gpus_per_worker or 1.0
    return (time.monotonic() - begin) * job.cluster.most_workers * per_worker
