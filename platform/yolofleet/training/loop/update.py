"""What a step computes with and what it changes: precision, optimiser, batch-norm statistics, average of the weights.

Batch norm of torch moves its running statistics at every forward pass, in whatever order the passes happen to run and
on whichever worker, so the result would depend on the number of workers. Here each pass only leaves its own statistics
in the buffers (momentum 1), they are summed over the step and over the workers, and the running statistics move once.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from yolofleet.models.network import ImplicitAdd, ImplicitMultiply
from yolofleet.specs.hyperparameters import Hyperparameters
from yolofleet.training.loop.schedule import StepSettings, averaging_decay, scaled_weight_decay

LOWEST_SCALE = 1.0
"""Loss scale at which fp16 gains nothing more by lowering it."""
FORWARD = {"fp32": None, "fp64": None, "bf16": torch.bfloat16, "fp16": torch.float16}
GROUP_NAMES = ("decayed", "plain", "biases")
"""Weights decay; norm scales and implicit knowledge do not; biases have a learning rate of their own (as published)."""
ADAM_SECOND_BETA = 0.999


class Precision:
    """One of ``fp32``, ``fp64``, ``bf16`` and ``fp16`` on a device.

    Parameters, moments and the average are float32 (float64 for ``fp64``); half precision is for the network's passes
    only, the loss is always computed in at least float32.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.parameters = torch.float64 if name == "fp64" else torch.float32
        self._forward = FORWARD[name]
        self.arithmetic = self._forward or self.parameters
        """The type that convolutions compute in."""
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Return the context of the forward pass."""
        if self._forward is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._forward)

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return uint8 (B, 3, H, W) as numbers in 0..1 on the device."""
        return pixels.to(self.device, non_blocking=True).to(self.parameters).div_(255)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradient."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Return the Euclidean norm of the whole gradient, without the loss scale; non-finite if any of it is."""
        self._scaler.unscale_(optimizer)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def may_lower_scale(self) -> bool:
        """Return whether a non-finite gradient may come from the loss scale alone."""
        return self._scaler.is_enabled() and self._scaler.get_scale() > LOWEST_SCALE

    def step(self, optimizer: torch.optim.Optimizer, finite: bool) -> None:
        """Let the optimiser step if the step is finite, and adapt the loss scale."""
        if not self._scaler.is_enabled():
            if finite:
                optimizer.step()
            return
        if finite:
            self._scaler.step(optimizer)
        self._scaler.update()
        if self._scaler.get_scale() < LOWEST_SCALE:
            self._scaler.update(LOWEST_SCALE)

    def metrics(self) -> dict[str, float]:
        """Return the values for a row of metrics."""
        return {"loss_scale": float(self._scaler.get_scale())} if self._scaler.is_enabled() else {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""
        return dict(self._scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        if self._scaler.is_enabled() and state:
            self._scaler.load_state_dict(state)


def group_parameters(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
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


def build_optimizer(
    model: nn.Module, hyperparameters: Hyperparameters, global_batch_size: int
) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over the model's parameter groups."""
    decay = scaled_weight_decay(hyperparameters, global_batch_size)
    groups = [
        {
            "name": name,
            "params": [parameter for _, parameter in members],
            "weight_decay": decay if name == "decayed" else 0.0,
        }
        for name, members in group_parameters(model).items()
    ]
    rate, momentum = hyperparameters.lr0, hyperparameters.momentum
    if hyperparameters.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True, foreach=True)
    adam = torch.optim.Adam if hyperparameters.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, lr=rate, betas=(momentum, ADAM_SECOND_BETA), foreach=True)


def apply_settings(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    """Set the step's learning rates, and SGD's momentum."""
    for group in optimizer.param_groups:
        group["lr"] = settings.bias_learning_rate if group["name"] == "biases" else settings.learning_rate
        if "momentum" in group:
            group["momentum"] = settings.momentum


def moment_prefixes(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Return the optimiser's moments by torch's name, each with what stands before a parameter's name in checkpoints.

    SGD's stand under the parameter's own name; those of another optimiser are never mistaken for them.
    """
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer": ""}
    return {"exp_avg": "exp_avg.", "exp_avg_sq": "exp_avg_sq."}


def moment_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's moments by name; parameters that never had a step are absent."""
    return {
        prefix + name: moment
        for members in group_parameters(model).values()
        for name, parameter in members
        for key, prefix in moment_prefixes(optimizer).items()
        if (moment := optimizer.state[parameter].get(key)) is not None
    }


def load_moment_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor], num_updates: int
) -> None:
    """Put moments saved by `moment_state` after ``num_updates`` steps of the optimiser back."""
    prefixes = moment_prefixes(optimizer)
    for members in group_parameters(model).values():
        for name, parameter in members:
            if all(prefix + name in state for prefix in prefixes.values()):
                found = {key: state[prefix + name].to(parameter).clone() for key, prefix in prefixes.items()}
                if "exp_avg" in found:
                    found["step"] = torch.tensor(float(num_updates))  # Adam corrects its bias by it
                optimizer.state[parameter] = found


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
        """Take the model's buffers as the running statistics, after a checkpoint was loaded."""
        if self._running:
            torch._foreach_copy_(self._running, self._buffers())


class WeightAverage:
    """The exponential moving average of weights and batch-norm statistics: the model that is released (paper 4.3).

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
