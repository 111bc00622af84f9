"""The state of a run between two steps: taken into a checkpoint, and restored from one."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

import yolofleet
from yolofleet.core.errors import UserError
from yolofleet.core.text import one_line
from yolofleet.models.weight_differences import load_strictly
from yolofleet.specs.job import JobSpec
from yolofleet.training.checkpoint.store import Checkpoint, CheckpointStore
from yolofleet.training.evaluation.checkpoint_evaluations import EVALUATE_LATER
from yolofleet.training.loop.update import Precision, WeightAverage, load_moment_state, moment_prefixes
from yolofleet.training.loop.worker_group import WorkerGroup


@dataclass
class RunState:
    """Where a run stands; everything else follows from the job and the step."""

    step: int = 0
    """Steps done."""
    num_updates: int = 0
    """Steps in which the optimiser moved (the others were skipped)."""
    non_finite_steps: int = 0
    """Steps skipped because loss or gradient was non-finite."""
    non_finite_in_a_row: int = 0
    """Those among the newest steps."""
    skipped_samples: int = 0
    """Samples that could not be read, over all workers."""
    skipped_windows: list[list[int]] = field(default_factory=list)
    """Steps [from, to) that are left out because they were non-finite before."""

    def window_end(self, num_steps: int) -> int | None:
        """Return the step to continue at if the next one is to be left out; the run's last step never is."""
        for first, end in self.skipped_windows:
            if first <= self.step < min(end, num_steps - 1):
                return min(end, num_steps - 1)
        return None

    def skip_to(self, end: int) -> None:
        """Continue at a later step; the steps in between count as non-finite."""
        self.non_finite_steps += end - self.step
        self.step = end

    def count_step(self, finite: bool, *, adapting: bool = False) -> None:
        """Count what became of the newest step, whose number the loop has counted.

        Args:
            finite: Whether the optimiser moved.
            adapting: It was skipped only to lower the loss scale, which is no sign of trouble.
        """
        self.num_updates += finite
        self.non_finite_steps += not finite
        self.non_finite_in_a_row = 0 if finite else self.non_finite_in_a_row + (not adapting)


def save(
    store: CheckpointStore,
    state: RunState,
    job: JobSpec,
    model: nn.Module,
    average: WeightAverage,
    moments: Mapping[str, torch.Tensor],
    precision: Precision,
    *,
    skippable: bool = False,
    evaluate_later: bool = False,
) -> None:
    """Take a checkpoint of everything that a restart needs.

    Args:
        store: Where it goes.
        state: Where the run stands.
        job: What is trained.
        model: Its weights.
        average: Their average.
        moments: The optimiser's moments by parameter.
        precision: Its loss scale.
        skippable: It may be left out where the storage is slow.
        evaluate_later: It is to be evaluated by another process.
    """
    tensors = {"weights": model.state_dict(), "average": average.model.state_dict(), "moments": moments}
    document = {
        "run": vars(state),
        EVALUATE_LATER: evaluate_later,
        "loss_scale": precision.state(),
        "job_digest": job.digest(),
        "versions": {
            "yolofleet": yolofleet.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    store.save(state.step, tensors, document, skippable=skippable)


def prepare(store: CheckpointStore, model: nn.Module, average: WeightAverage, optimizer: torch.optim.Optimizer) -> None:
    """Allocate the memory of later checkpoints."""
    moments = {
        prefix + name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for prefix in moment_prefixes(optimizer).values()
    }
    store.prepare({"weights": model.state_dict(), "average": average.model.state_dict(), "moments": moments})


def restore(
    store: CheckpointStore,
    job: JobSpec,
    group: WorkerGroup,
    model: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    earlier_epochs: Sequence[float] = (),
) -> RunState:
    """Load the newest whole checkpoint into everything, or leave a fresh run as it is.

    The first worker chooses the checkpoint, so that all resume from the same one. It was taken under this job, or under
    the same with one of the ``earlier_epochs``.
    """
    found = store.newest() if group.is_first else None
    step = group.first_value(found.step if found is not None else -1)
    if step < 0:
        return RunState()
    checkpoint = found if found is not None else store.load(step)
    _check_same_job(checkpoint, job, store, earlier_epochs)
    try:
        load_strictly(model, checkpoint.tensors["weights"])
        load_strictly(average.model, checkpoint.tensors["average"])
        precision.load_state(checkpoint.state["loss_scale"])
        known = {field.name for field in fields(RunState)}  # older checkpoints also held the best step so far
        run = {name: value for name, value in checkpoint.state["run"].items() if name in known}
        state = TypeAdapter(RunState).validate_json(json.dumps(run), strict=True)
        load_moment_state(model, optimizer, checkpoint.tensors["moments"], state.num_updates)
        return state
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{store.storage.url}/step-{step}: is no checkpoint of this run ({one_line(error)}); remove it, and "
            "the run resumes from the one before"
        ) from error


def _check_same_job(
    checkpoint: Checkpoint, job: JobSpec, store: CheckpointStore, earlier_epochs: Sequence[float]
) -> None:
    recorded: Any = checkpoint.state.get("job_digest")
    known = (job, *(job.model_copy(update={"epochs": epochs}) for epochs in earlier_epochs))
    if all(recorded != one.digest() for one in known):
        raise UserError(
            f"{store.storage.url}/step-{checkpoint.step}: was taken under another job spec (digest "
            f"{str(recorded)[:12]}, this job has {job.digest()[:12]}); use another run name, or the job as it was"
        )
