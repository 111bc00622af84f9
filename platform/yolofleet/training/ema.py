"""Exponential moving average of weights and batch-norm statistics: the model that is released (paper 4.3)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from yolofleet.specs.hyperparameters import Hyperparameters
from yolofleet.training.schedule import averaging_decay


class WeightAverage:
    """A second model that follows the trained one.

    Every floating-point entry of the state takes part. It is the same on every worker, since all hold equal weights.
    """

    def __init__(self, model: nn.Module, hyperparameters: Hyperparameters) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._hyperparameters = hyperparameters
        self._source = model
        self._pairs: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None

    def _tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        if self._pairs is None:
            source, average = self._source.state_dict(), self.model.state_dict()
            names = [name for name, tensor in average.items() if tensor.is_floating_point()]
            self._pairs = [average[name] for name in names], [source[name] for name in names]
        return self._pairs

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Move towards the trained weights after optimiser step number ``num_updates`` (the first is 1)."""
        average, source = self._tensors()
        torch._foreach_lerp_(average, source, 1 - averaging_decay(self._hyperparameters, num_updates))
