"""One leg of a trial, in the process that trains it: from where the run directory stands to a share of the run.

A trial with one worker runs the loop here, in the process that holds its resources; only one with more workers starts
Ray Train, inside it. Whatever was lost, the next leg of the same run goes on from its newest checkpoint.

Beginning a run from another run's checkpoint: the same bytes of weights, averaged weights and momentum.

The trained weights that every trial of a search starts from, read once.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch

from yolofleet.core.errors import UserError, WorkError
from yolofleet.search.directory import SearchDirectory
from yolofleet.specs.job import JobSpec
from yolofleet.storage import Storage
from yolofleet.storage.lock import Lock, LockHeldError, hold
from yolofleet.storage.lock_record import FencingToken
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.loop.progress import Milestones
from yolofleet.training.loop.worker_group import WorkerGroup, WorkerProgress
from yolofleet.training.setup.preflight import Readiness, check_job, run_storage
from yolofleet.training.setup.pretrained import Locate, read_trained
from yolofleet.training.supervision.worker import local_device, run_worker

INITIAL_PREFIX = "initial/"
"""What a run decided before its first step (anchors, say): a run that goes on from its weights goes on with it."""


def clone_checkpoint(source: RunDirectory, step: int, target: RunDirectory, job: JobSpec) -> str | None:
    """Give a fresh run the checkpoint of another one; a run that has a checkpoint is left alone.

    Args:
        source: The run to begin from.
        step: Which of its checkpoints.
        target: The fresh run.
        job: What the fresh run will compute from there.

    Returns:
        The SHA-256 of the weights that the run begins with; None where it had a checkpoint already.

    Raises:
        WorkError: The source has no whole checkpoint of that step.
    """
    store = CheckpointStore(target.storage.child("checkpoints"))
    if store.steps():
        return None
    theirs = CheckpointStore(source.storage.child("checkpoints"))
    if step not in theirs.steps():
        raise WorkError(f"{source.url}: has no checkpoint of step {step} for {target.url} to begin from")
    checkpoint = theirs.load(step)
    digest = weights_digest(checkpoint.tensors)
    _copy_initial(source.storage, target.storage)
    state: dict[str, Any] = {
        **{key: value for key, value in checkpoint.state.items() if key not in ("format", "step")},
        "job_digest": job.digest(),
        "cloned_from": {"run": source.name, "step": step, "weights_sha256": digest},
    }
    store.save(step, checkpoint.tensors, state)
    store.wait()
    if store.steps() != [step]:
        raise WorkError(f"{target.url}: the storage did not take the checkpoint of {source.url}, step {step}")
    target.append_event("cloned", source=source.name, step=step, weights_sha256=digest)
    target.close()
    return digest


def weights_digest(tensors: dict[str, dict[str, Any]]) -> str:
    """Return the SHA-256 of a checkpoint's weights, as its file holds them."""
    return hashlib.sha256(safetensors.torch.save(tensors["weights"])).hexdigest()


def _copy_initial(source: Storage, target: Storage) -> None:
    """Copy what the run decided at its start, ``anchors.json`` last: with it, all is there."""
    keys = [entry.key for entry in source.list(INITIAL_PREFIX)]
    for key in sorted(keys, key=lambda key: key.endswith("anchors.json")):
        target.put(key, source.get(key))


KEPT_KEY = "initial/weights.safetensors"


def keep_initial_weights(directory: SearchDirectory, base: JobSpec, locate: Locate) -> None:
    """Keep the base job's initial weights in the search directory, once.

    A run directory's best or an alias of the registry may be another one tomorrow, and workers on other hosts may not
    reach it: trials of one search start from the same weights.

    Args:
        directory: The search.
        base: Its base job, with absolute paths.
        locate: Finds registered versions.

    Raises:
        UserError: There is nothing that can be trained further.
    """
    if base.initial_weights is None or directory.storage.exists(KEPT_KEY):
        return
    found = read_trained(base.initial_weights, locate)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.state.items()}
    directory.append_event("initial_weights", source=found.source, sha256=found.sha256, parent=found.parent)
    directory.storage.put(KEPT_KEY, safetensors.torch.save(tensors))


def with_kept_weights(job: JobSpec, base: JobSpec, directory: SearchDirectory) -> JobSpec:
    """Return a trial's job with the weights that the search keeps; one that names others by itself gets those."""
    if job.initial_weights is None or job.initial_weights != base.initial_weights:
        return job
    return job.model_copy(update={"initial_weights": f"{directory.url}/{KEPT_KEY}"})


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


def _train(job: JobSpec, last_step: int, num_steps: int, token: FencingToken) -> None:
    pause = None if last_step >= num_steps else last_step
    if job.cluster.most_workers > 1:
        from yolofleet.training.supervision.launch import run_on_ray

        run_on_ray(job, token, leave_after_step=pause)
        return
    device = local_device(job)
    run_worker(job, WorkerGroup(device=device, progress=WorkerProgress(leave_after_step=pause)), token)
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
        except LockHeldError:
            if time.monotonic() > end:
                raise
            time.sleep(HOLD_POLL_SECONDS)
    with lock:
        yield lock


def _cost(job: JobSpec, begin: float) -> float:
    """Return worker seconds: GPU seconds where the workers have GPUs."""
    per_worker = job.cluster.gpus_per_worker or 1.0
    return (time.monotonic() - begin) * job.cluster.most_workers * per_worker
