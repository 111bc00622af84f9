"""Beginning a run from another run's checkpoint: the same bytes of weights, averaged weights and momentum."""

from __future__ import annotations

import hashlib
from typing import Any

import safetensors.torch

from yolofleet.errors import WorkError
from yolofleet.specs.job import JobSpec
from yolofleet.storage import Storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint import CheckpointStore

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
