"""What the loop asks of a strategy, and which one a job names."""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch
from torch import nn

from yolofleet.specs.job import JobSpec
from yolofleet.training.group import WorkerGroup
from yolofleet.training.precision import Precision
from yolofleet.training.strategies.replicated import Replicated

Tensors = dict[str, torch.Tensor]


class Strategy(Protocol):
    """One worker's side of the division. Every method is called by all workers at the same place of the loop.

    Attributes:
        network: What images pass through.
        optimizer: Whose parameter groups hold the settings of the step.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context of a micro-batch; gradients are exchanged in the last one of a step at the latest."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's loss to that of the step: the sum over all workers' micro-batches."""

    def gradient_norm(self) -> torch.Tensor:
        """Return the norm of the step's whole gradient; not finite if any of it is not."""

    def step(self, finite: bool) -> None:
        """Let the optimiser step if the gradient is finite, and forget the gradient."""

    def moments(self) -> Tensors:
        """Return the optimiser's whole moments by parameter name, on every worker."""


def build_strategy(
    job: JobSpec, model: nn.Module, optimizer: torch.optim.SGD, precision: Precision, group: WorkerGroup
) -> Strategy:
    """Return the job's strategy for a model whose weights and moments are those to go on from.

    One worker has nothing to share out, whatever the strategy.
    """
    if job.strategy == "ddp" or group.world_size == 1:
        return Replicated(model, optimizer, precision, group)
    from yolofleet.training.strategies.sharded import Sharded  # DeepSpeed takes seconds to import

    stage = {"zero1": 1, "zero2": 2}[job.strategy]
    return Sharded(model, optimizer, group, stage=stage, micro_batch_size=job.micro_batch_size)
