"""The trained weights that every trial of a search starts from, read once."""

from __future__ import annotations

import safetensors.torch

from yolofleet.search.directory import SearchDirectory
from yolofleet.specs.job import JobSpec
from yolofleet.training.initial import Locate, read_trained

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
