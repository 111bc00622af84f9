"""SGD with the published parameter groups: weights decay; norm scales and implicit knowledge do not; biases apart."""

from __future__ import annotations

import torch
from torch import nn

from yolofleet.models.implicit import ImplicitAdd, ImplicitMultiply
from yolofleet.specs.hyperparameters import Hyperparameters
from yolofleet.training.schedule import StepSettings, scaled_weight_decay

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
