"""SGD with the published parameter groups: weights decay; norm scales and implicit knowledge do not; biases apart.

Exponential moving average of weights and batch-norm statistics: the model that is released (paper 4.3).
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from yolofleet.models.network import ImplicitAdd, ImplicitMultiply
from yolofleet.specs.hyperparameters import Hyperparameters
from yolofleet.training.loop.schedule import StepSettings, averaging_decay, scaled_weight_decay

GROUP_NAMES = ("decayed", "plain", "biases")


def grouped_parameters(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Return the model's trainable parameters by group, each in the order of the model.

    Returns:
        ``decayed``: convolution weights; ``plain``: batch-norm scales and implicit knowledge; ``biases``: every bias.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in GROUP_NAMES}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                group = "biases"
            elif isinstance(module, nn.BatchNorm2d | ImplicitAdd | ImplicitMultiply):
                group = "plain"
            else:
                group = "decayed"
            groups[group].append((f"{prefix}.{name}" if prefix else name, parameter))
    return groups


def build_optimizer(model: nn.Module, hyperparameters: Hyperparameters, global_batch_size: int) -> torch.optim.SGD:
    """Return Nesterov SGD over the model's parameter groups."""
    decay = scaled_weight_decay(hyperparameters, global_batch_size)
    return torch.optim.SGD(
        [
            {
                "name": name,
                "params": [parameter for _, parameter in members],
                "weight_decay": decay if name == "decayed" else 0.0,
            }
            for name, members in grouped_parameters(model).items()
        ],
        lr=hyperparameters.lr0,
        momentum=hyperparameters.momentum,
        nesterov=True,
        foreach=True,
    )


def apply_settings(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    """Set the step's learning rates and momentum."""
    for group in optimizer.param_groups:
        group["lr"] = settings.bias_learning_rate if group["name"] == "biases" else settings.learning_rate
        group["momentum"] = settings.momentum


def momentum_state(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, torch.Tensor]:
    """Return the optimiser's moments by parameter name; parameters that never had a step are absent."""
    return {
        name: buffer
        for members in grouped_parameters(model).values()
        for name, parameter in members
        if (buffer := optimizer.state[parameter].get("momentum_buffer")) is not None
    }


def load_momentum_state(model: nn.Module, optimizer: torch.optim.SGD, state: dict[str, torch.Tensor]) -> None:
    """Put moments saved by `momentum_state` back."""
    for members in grouped_parameters(model).values():
        for name, parameter in members:
            if name in state:
                optimizer.state[parameter]["momentum_buffer"] = state[name].to(parameter).clone()


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
