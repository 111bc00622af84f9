"""Running statistics of batch norm, updated once a step from the mean over the step's micro-batches.

Ordinary batch norm moves its running statistics at every forward pass, in whatever order the passes happen to run and
on whichever worker: the result would depend on the number of workers. Here each pass only leaves its own statistics in
the buffers (momentum 1), they are summed over the step and over the workers, and the running statistics move once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class MicroBatchStatistics:
    """Takes over the running statistics of a model in training.

    Between two steps the model's buffers hold the true running statistics; they are what a checkpoint saves.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        for layer in layers:
            layer.num_batches_tracked = None  # would count passes of this worker only
        # Layers in evaluation mode belong to frozen blocks: their running statistics stay as they are.
        self._layers = [layer for layer in layers if layer.training]
        self._momentum = [float(layer.momentum or 0.0) for layer in self._layers for _ in range(2)]
        for layer in self._layers:
            layer.momentum = 1.0
        self._sums = [torch.zeros_like(buffer) for buffer in self._buffers()]
        self._running = [buffer.clone() for buffer in self._buffers()]

    def _buffers(self) -> list[torch.Tensor]:
        """The mean and variance of every layer, in the order of the model."""
        buffers = []
        for layer in self._layers:
            assert layer.running_mean is not None and layer.running_var is not None
            buffers += [layer.running_mean, layer.running_var]
        return buffers

    @torch.no_grad()
    def begin_step(self) -> None:
        """Forget the sums of the last step."""
        if self._sums:
            torch._foreach_zero_(self._sums)

    @torch.no_grad()
    def add_micro_batch(self) -> None:
        """Add the statistics that the forward pass just left in the buffers."""
        if self._sums:
            torch._foreach_add_(self._sums, self._buffers())

    @torch.no_grad()
    def finish_step(self, num_micro_batches: int, reduce: Callable[[torch.Tensor], None], *, accept: bool) -> None:
        """Move the running statistics by the mean over all micro-batches of the step.

        Args:
            num_micro_batches: Micro-batches of the step over all workers.
            reduce: Sums a flat tensor over the workers, in place.
            accept: False leaves the running statistics as they were (a step that is skipped).
        """
        if not self._sums:
            return
        if accept:
            flat = torch.cat(self._sums)  # every statistic is (channels,)
            reduce(flat)
            flat /= num_micro_batches
            means = torch.split(flat, [buffer.numel() for buffer in self._sums])
            for running, mean, momentum in zip(self._running, means, self._momentum, strict=True):
                running.lerp_(mean, momentum)
        torch._foreach_copy_(self._buffers(), self._running)

    @torch.no_grad()
    def reload(self) -> None:
        """Take the model's buffers as the true running statistics (after a checkpoint was loaded)."""
        if self._running:
            torch._foreach_copy_(self._running, self._buffers())
