"""Every worker holds everything; gradients are averaged over the workers (torch's DistributedDataParallel)."""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from yolofleet.training.group import WorkerGroup
from yolofleet.training.optimizer import momentum_state
from yolofleet.training.precision import Precision


class Replicated:
    """The strategy ``ddp``, and that of a single worker."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.SGD, precision: Precision, group: WorkerGroup) -> None:
        self._model = model
        self._precision = precision
        self._world_size = group.world_size
        self._momentum_optimizer = optimizer
        self.optimizer: torch.optim.Optimizer = optimizer
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
        """Return the norm of the whole gradient, loss scale taken out."""
        return self._precision.gradient_norm(self._model, self.optimizer)

    def step(self, finite: bool) -> None:
        """Step if the gradient is finite, and forget it."""
        self._precision.step(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, torch.Tensor]:
        """Return the moments by parameter name."""
        return momentum_state(self._model, self._momentum_optimizer)


def _distributed(model: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():  # the newest torch renames an argument that the one before it needs
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
