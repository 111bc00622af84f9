"""How the work of a step is divided among workers: what the loop asks of a strategy, and the plain one.

In the plain one every worker holds everything, and gradients are averaged by torch's DistributedDataParallel.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.update import Precision, begin_moments, moment_state
from yolofleet.training.loop.worker_group import WorkerGroup

Tensors = dict[str, torch.Tensor]


class Strategy(Protocol):
    """One worker's side of the division. All workers call every method at the same point of the loop."""

    network: nn.Module
    """The module that images pass through."""
    optimizer: torch.optim.Optimizer
    """Its parameter groups hold the settings of the step."""

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context of a micro-batch; gradients are exchanged in the last one of a step at the latest."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's loss to that of the step: the sum over all workers' micro-batches."""

    def gradient_norm(self) -> torch.Tensor:
        """Return the norm of the step's whole gradient; not finite if any of it is not."""

    def step(self, finite: torch.Tensor) -> None:
        """Let the optimiser step where the flag on the device is set, and forget the gradient."""

    def moments(self) -> Tensors:
        """Return the optimiser's whole moments by parameter name, on every worker."""


def build_strategy(
    job: JobSpec, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, group: WorkerGroup
) -> Strategy:
    """Return the job's strategy for a model with the weights and moments to start from.

    One worker has nothing to divide, whatever the strategy.
    """
    if job.strategy == "ddp" or group.world_size == 1:
        return Replicated(model, optimizer, precision, group)
    from yolofleet.training.strategies.sharded import Sharded  # DeepSpeed takes seconds to import

    stage = {"zero1": 1, "zero2": 2}[job.strategy]
    return Sharded(model, optimizer, group, stage=stage, micro_batch_size=job.resolved_micro_batch_size)


class Replicated:
    """The strategy ``ddp``, and that of a single worker."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, group: WorkerGroup
    ) -> None:
        self._model = model
        self._precision = precision
        self._world_size = group.world_size
        begin_moments(optimizer)
        self.optimizer = optimizer
        self.network: nn.Module = _distributed(model) if group.world_size > 1 else model

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Let workers exchange gradients only in the last micro-batch of a step."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add a gradient. Workers average theirs; times their number it is the sum over all micro-batches."""
        self._precision.backward(loss * self._world_size)

    def gradient_norm(self) -> torch.Tensor:
        """Return the norm of the whole gradient, without the loss scale."""
        return self._precision.gradient_norm(self._model, self.optimizer)

    def step(self, finite: torch.Tensor) -> None:
        """Step where the flag is set, and forget the gradient; the host does not wait."""
        self._precision.step(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, torch.Tensor]:
        """Return the moments by parameter name."""
        return moment_state(self._model, self.optimizer)


def _distributed(model: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():  # the newest torch renames an argument that older ones need
        warnings.simplefilter("ignore", FutureWarning)
        # No static graph: torch needs an exchange in its very first pass (else an internal assertion fails), and a step
        # exchanges in its last micro-batch.
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
