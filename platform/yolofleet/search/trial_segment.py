"""One segment of a trial, in the process that trains it: from the run's newest checkpoint to a share of the run.

A trial with one worker trains in this process, which already holds its resources; one with more workers starts Ray
Train from here. If the process is lost, the next segment of the same run resumes from its newest checkpoint.

Two things stand beside it that decide from which weights a run starts: the clone of another run's checkpoint (weights,
averaged weights and momentum, byte for byte), and the initial weights that all trials of a search share.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch

from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.retry import retry
from yolofleet.core.text import one_line
from yolofleet.models.checkpoint_reader import NAMES_KEY
from yolofleet.search.directory import SearchDirectory
from yolofleet.specs.job import JobSpec
from yolofleet.storage import Storage, is_transient
from yolofleet.storage.lock import FencingToken, LockHeldError, hold
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.loop.milestones import Milestones
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.loop.worker_progress import WorkerProgress
from yolofleet.training.setup.preflight import Readiness, check_job, run_storage
from yolofleet.training.setup.preparation import ORDER_KEY
from yolofleet.training.setup.pretrained import Locate, read_trained
from yolofleet.training.supervision.worker import local_device, run_worker

LOCK_PATIENCE_SECONDS = 120.0
"""How long a segment waits until the process of a lost driver has ended and its lock on the run is free."""
LOCK_POLL_SECONDS = 2.0
INITIAL_PREFIX = "initial/"
"""What a run decides before its first step (anchors, for example); a clone of its weights needs the same."""
KEPT_KEY = "initial/weights.safetensors"


@dataclass(frozen=True)
class SegmentOrder:
    """What a trial's process shall do; plain values, so that any process can read it."""

    job: dict[str, Any]
    """The job of the run, as a document."""
    share: float
    """Share of the run at which the segment ends."""
    objectives: list[str]
    """Metrics that must be measured at the end."""

    def to_json(self) -> str:
        """Return the order as JSON."""
        return json.dumps(asdict(self))


def run_segment(text: str) -> dict[str, Any]:
    """Run a segment by its order (JSON); returns the fields of `yolofleet.search.engine.SegmentResult`."""
    order = SegmentOrder(**json.loads(text))
    job = JobSpec.parse(order.job, source="trial")
    begin = time.monotonic()
    try:
        storage = run_storage(job)
        lock = retry(
            lambda: hold(storage),
            patience_seconds=LOCK_PATIENCE_SECONDS,
            is_transient=lambda error: isinstance(error, LockHeldError),
            longest_pause_seconds=LOCK_POLL_SECONDS,
        )
        with lock:
            ready = check_job(job)
            job = ready.job
            last_step = segment_end(job, ready, order.share)
            if ready.done_steps < last_step:
                _train(job, last_step, ready.num_steps, lock.token)
            measured = newest_metrics(ready.run, last_step)
            _check_reported(measured, order.objectives, job)
    except (UserError, WorkError) as error:
        kind = "outage" if _is_outage(error) else "failure"
        return {kind: one_line(error, 1000), "gpu_seconds": _worker_seconds(job, begin)}
    return {
        "step": last_step,
        "share": last_step / ready.num_steps,
        "measured": measured,
        "gpu_seconds": _worker_seconds(job, begin),
    }


def segment_end(job: JobSpec, ready: Readiness, share: float) -> int:
    """Return the last step of a segment: the first evaluation at or after a share of the run."""
    step = max(1, math.ceil(share * ready.num_steps - 1e-9))
    return Milestones.of_job(job, len(ready.train)).next_evaluation(step)


def newest_metrics(run: RunDirectory, last_step: int) -> dict[str, float]:
    """Return the newest finite value of every metric up to a step."""
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

        run_on_ray(job, token, leave_after_step=pause, in_queue=False)
        return
    device = local_device(job)
    run_worker(job, WorkerGroup(device=device, progress=WorkerProgress(leave_after_step=pause)), token)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # other trials may share this GPU while this process waits or trains the next one


def _check_reported(measured: dict[str, float], objectives: list[str], job: JobSpec) -> None:
    if missing := [name for name in objectives if name not in measured]:
        known = ", ".join(sorted(measured)) or "nothing"
        raise WorkError(
            f"{', '.join(missing)}: {job.name} reported no finite value of it (it reported {known}). AP is NaN where "
            "the validation set has no objects"
        )


def _is_outage(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, is of a storage that may answer again."""
    return error is not None and ((isinstance(error, Exception) and is_transient(error)) or _is_outage(error.__cause__))


def _worker_seconds(job: JobSpec, begin: float) -> float:
    """Return the worker seconds since the begin: GPU seconds where the workers have GPUs."""
    return (time.monotonic() - begin) * job.cluster.most_workers * (job.cluster.gpus_per_worker or 1.0)


def clone_checkpoint(source: RunDirectory, step: int, target: RunDirectory, job: JobSpec) -> str | None:
    """Copy a checkpoint of one run into a new run; a run that has a checkpoint is left unchanged.

    Returns:
        The SHA-256 of the copied weights; None where the run had a checkpoint already.

    Raises:
        WorkError: The source has no complete checkpoint of that step.
    """
    store = CheckpointStore(target.storage.child("checkpoints"))
    if store.steps():
        return None
    source_store = CheckpointStore(source.storage.child("checkpoints"))
    if step not in source_store.steps():
        raise WorkError(f"{source.url}: has no checkpoint of step {step} for {target.url} to start from")
    checkpoint = source_store.load(step)
    digest = hashlib.sha256(safetensors.torch.save(checkpoint.tensors["weights"])).hexdigest()
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


def _copy_initial(source: Storage, target: Storage) -> None:
    """Copy what the run decided at its start; the order last, because it marks the copy as complete."""
    keys = [entry.key for entry in source.list(INITIAL_PREFIX)]
    for key in sorted(keys, key=lambda key: key == ORDER_KEY):
        target.put(key, source.get(key))


def keep_initial_weights(directory: SearchDirectory, base: JobSpec, locate: Locate) -> None:
    """Store the base job's initial weights in the search directory, once.

    All trials of a search start from the same weights: the best of a run directory or an alias of the registry may
    change during the search, and workers on other hosts may not reach them.

    Args:
        directory: The search.
        base: Its base job, with absolute paths.
        locate: Finds registered versions.

    Raises:
        UserError: There are no weights that can be trained further.
    """
    if base.initial_weights is None or directory.storage.exists(KEPT_KEY):
        return
    trained = read_trained(base.initial_weights, locate, base.initial_weights_sha256)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state.items()}
    directory.append_event("initial_weights", source=trained.source, sha256=trained.sha256, parent=trained.parent)
    names = None if trained.class_names is None else {NAMES_KEY: json.dumps(trained.class_names)}
    directory.storage.put(KEPT_KEY, safetensors.torch.save(tensors, names))


def use_kept_weights(job: JobSpec, base: JobSpec, directory: SearchDirectory) -> JobSpec:
    """Return a trial's job with the stored initial weights in place of the base job's; its own weights stay."""
    if job.initial_weights is None or job.initial_weights != base.initial_weights:
        return job
    return job.model_copy(update={"initial_weights": f"{directory.url}/{KEPT_KEY}", "initial_weights_sha256": None})
