"""Arithmetic of a run: the type of the parameters and of the passes, and loss scaling where half precision needs it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

FORWARD = {"fp32": None, "fp64": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        """Return the Euclidean norm of the whole gradient, unscaled; not finite if any of it is not."""
        self._scaler.unscale_(optimizer)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def step(self, optimizer: torch.optim.Optimizer, finite: bool) -> None:
        """Let the optimiser step if the gradient is finite, and adapt the loss scale."""
        if self._scaler.is_enabled():
            self._scaler.step(optimizer)  # skips by itself where the gradient is not finite
            self._scaler.update()
        elif finite:
            optimizer.step()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""
        return dict(self._scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        if self._scaler.is_enabled() and state:
            self._scaler.load_state_dict(state)
