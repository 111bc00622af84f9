"""What a step computes with and what it changes: precision, optimiser, batch-norm statistics, average of the weights.

Batch norm of torch moves its running statistics at every forward pass, in whatever order the passes happen to run and
on whichever worker, so the result would depend on the number of workers. Here each pass only leaves its own statistics
in the buffers (momentum 1), they are summed over the step and over the workers, and the running statistics move once.

Nothing here reads a value back from the device: whether a step is finite is a flag there, by which the optimiser and
the running statistics move or stay. The average moves when the host knows the flag, which is a step later.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
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

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled, so that a gradient may be infinite only because the scale is too high."""
        return self._scaler.is_enabled()

    def loss_scale(self) -> torch.Tensor:
        """Return a copy of the loss scale, a scalar on the device; 1 without scaling."""
        scale: torch.Tensor = self._scaler.scale(torch.ones((), device=self.device))
        return scale

    def step(self, optimizer: torch.optim.Optimizer, finite: torch.Tensor) -> None:
        """Let a fused optimiser step where ``finite``, a flag on the device, is set; adapt the loss scale."""
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined] # as torch's scaler tells it to skip
        optimizer.step()
        if self._scaler.is_enabled():
            self._scaler.update()
            self._scaler.update(self.loss_scale().clamp(min=LOWEST_SCALE))

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
    """Return the recipe's optimiser over the model's parameter groups.

    It is a fused one. On CPUs its SGD gives what ``foreach`` gives, bit for bit in float32; Adam's differs by rounding.
    """
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
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True, fused=True)
    adam = torch.optim.Adam if hyperparameters.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, lr=rate, betas=(momentum, ADAM_SECOND_BETA), fused=True)


def apply_settings(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    """Set the step's learning rates, and SGD's momentum."""
    for group in optimizer.param_groups:
        group["lr"] = settings.bias_learning_rate if group["name"] == "biases" else settings.learning_rate
        if "momentum" in group:
            group["momentum"] = settings.momentum


def begin_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD the zero moments it begins with: where torch's first step is skipped, it leaves them undefined."""
    if isinstance(optimizer, torch.optim.SGD):
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            if "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


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
                # They lie in memory as the parameter does, which a fused step needs.
                found = {
                    key: torch.empty_like(parameter.detach()).copy_(state[prefix + name])
                    for key, prefix in prefixes.items()
                }
                if "exp_avg" in found:  # Adam corrects its bias by the number of steps
                    found["step"] = torch.tensor(float(num_updates), device=parameter.device)
                optimizer.state[parameter] = found


class MicroBatchStatistics:
    """Takes over the running statistics of a model in training.

    Between two steps the model's buffers hold the true running statistics; they are what a checkpoint saves.

    Attributes:
        sums: Flat, the statistics of this worker's micro-batches of the step, added up; the caller sums them over the
            workers before `finish_step`.
        running: The true running statistics by their names in the model's state, at any time.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
        for layer in layers.values():
            layer.num_batches_tracked = None  # would count passes of this worker only
        # Layers in evaluation mode belong to frozen blocks: their running statistics stay as they are.
        moving = {name: layer for name, layer in layers.items() if layer.training}
        self._layers = list(moving.values())
        buffers = self._buffers()
        sizes = [buffer.numel() for buffer in buffers]
        momentum = [float(layer.momentum or 0.0) for layer in self._layers for _ in range(2)]
        for layer in self._layers:
            layer.momentum = 1.0
        like = next(model.parameters()).detach()
        self._momentum = torch.cat([like.new_empty(0), *map(torch.full_like, buffers, momentum)])
        self._flat_running = torch.cat([like.new_empty(0), *buffers])
        self.sums = torch.zeros_like(self._flat_running)
        self._sums, self._running = (list(torch.split(flat, sizes)) for flat in (self.sums, self._flat_running))
        names = [f"{name}.{field}" for name in moving for field in ("running_mean", "running_var")]
        self.running = dict(zip(names, self._running, strict=True))

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
        self.sums.zero_()

    @torch.no_grad()
    def add_micro_batch(self) -> None:
        """Add the statistics that the forward pass just left in the buffers."""
        if self._sums:
            torch._foreach_add_(self._sums, self._buffers())

    @torch.no_grad()
    def finish_step(self, num_micro_batches: int, *, accept: torch.Tensor) -> None:
        """Move the running statistics by the mean over all micro-batches of the step.

        Args:
            num_micro_batches: Micro-batches of the step over all workers.
            accept: A flag on the device; where it is False they stay as they were (a step that is skipped).
        """
        if not self._sums:
            return
        moved = self._flat_running.lerp(self.sums / num_micro_batches, self._momentum)
        self._flat_running.copy_(torch.where(accept, moved, self._flat_running))
        torch._foreach_copy_(self._buffers(), self._running)

    @torch.no_grad()
    def reload(self) -> None:
        """Take the model's buffers as the running statistics, after a checkpoint was loaded."""
        if self._running:
            torch._foreach_copy_(self._running, self._buffers())


class WeightAverage:
    """The exponential moving average of weights and batch-norm statistics: the model that is released (paper 4.3).

    Every floating-point entry of the state takes part. It is the same on every worker, since all hold equal weights.

    Args:
        model: The trained model.
        hyperparameters: Those of the average.
        running: True running statistics by name, where the model's buffers also hold those of single passes.
    """

    def __init__(
        self, model: nn.Module, hyperparameters: Hyperparameters, running: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self._running = running or {}
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._hyperparameters = hyperparameters
        self._source = model
        self._pairs: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None

    def _tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        if self._pairs is None:
            source, average = self._source.state_dict() | dict(self._running), self.model.state_dict()
            names = [name for name, tensor in average.items() if tensor.is_floating_point()]
            self._pairs = [average[name] for name in names], [source[name] for name in names]
        return self._pairs

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Move towards the trained weights after optimiser step number ``num_updates`` (the first is 1)."""
        average, source = self._tensors()
        torch._foreach_lerp_(average, source, 1 - averaging_decay(self._hyperparameters, num_updates))
