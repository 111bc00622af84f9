"""Batch norm over the micro-batches that several workers pass at the same time (SyncBN in the published runs).

With ``batch_norm_workers: N`` the micro-batches of a step form teams of N, whose members are normalised by the mean and
variance of all N micro-batches. `assign_micro_batches` gives the members of a team to N workers at the same position,
so a team holds the same micro-batches whatever the number of workers.

The forward pass exchanges one mean and variance a channel, the backward pass two sums a channel. torch's own
SyncBatchNorm does the same, but only on GPUs; this one is the same code on any device and on any backend of
torch.distributed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from yolofleet.training.loop.worker_group import WorkerGroup

PIXELS = (0, 2, 3)
"""The dimensions of (B, C, H, W) that statistics are taken over."""


class _NormaliseTogether(torch.autograd.Function):
    """Normalise by the mean and variance of a team, and give each member its part of the gradient."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, team: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, C, H, W) to the same shape; also returns mean and biased variance of the team, (C,) each."""
        own = torch.stack(torch.var_mean(x.to(weight.dtype), dim=PIXELS, correction=0))  # (2, C)
        members = torch.zeros(team.size(), *own.shape, dtype=own.dtype, device=own.device)
        members[team.rank()] = own
        dist.all_reduce(members, group=team)  # every entry is 0 but on one member
        variances, means = members.unbind(1)  # (members, C)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        context.save_for_backward(x, weight, mean, (variance + epsilon).rsqrt())
        context.team = team
        context.mark_non_differentiable(mean, variance)
        return functional.batch_norm(x, mean, variance, weight, bias, eps=epsilon), mean, variance

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> Any:
        """Return the gradients of the input and of this member's scale and shift."""
        x, weight, mean, scale = context.saved_tensors
        column = (1, -1, 1, 1)
        normalised = (x.to(weight.dtype) - mean.view(column)) * scale.view(column)
        wide = gradient.to(weight.dtype)
        own = torch.stack((wide.sum(PIXELS), (wide * normalised).sum(PIXELS)))  # (2, C)
        team = own.clone()
        dist.all_reduce(team, group=context.team)
        team /= x.numel() / x.shape[1] * context.team.size()
        by_mean, by_scale = (total.view(column) for total in team)
        found = (wide - by_mean - normalised * by_scale) * (weight * scale).view(column)
        return found.to(x.dtype), own[1], own[0], None, None


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over a team of workers in training; in evaluation mode plain batch norm.

    Args:
        layer: The plain one; its parameters and buffers are taken, not copied.
        team: The workers that are normalised together, each with a micro-batch of the same shape.
    """

    def __init__(self, layer: nn.BatchNorm2d, team: dist.ProcessGroup) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.team = team

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W), and move the running statistics by those of the team."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        arguments = (x, self.weight, self.bias, self.eps, self.team)
        found, mean, variance = _NormaliseTogether.apply(*arguments)  # type: ignore[no-untyped-call]
        count = x.numel() / x.shape[1] * self.team.size()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return found  # type: ignore[no-any-return]


def synchronise_batch_norm(model: nn.Module, team_size: int, group: WorkerGroup) -> None:
    """Replace the batch norm of a model in training mode by that over teams of workers; a collective.

    Layers in evaluation mode belong to frozen blocks and stay as they are.

    Args:
        model: Changed in place; names in its state stay the same.
        team_size: Workers of a team.
        group: This worker, of a multiple of ``team_size``.
    """
    teams = [dist.new_group(list(range(first, first + team_size))) for first in range(0, group.world_size, team_size)]
    team = teams[group.rank // team_size]
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.BatchNorm2d) and layer.training:
                setattr(module, name, SynchronisedBatchNorm2d(layer, team))
