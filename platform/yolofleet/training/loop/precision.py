"""Arithmetic of a run: the type of the parameters and of the passes, and loss scaling where half precision needs it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

LOWEST_SCALE = 1.0
"""Loss scale at which fp16 gains nothing more by lowering it."""
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

    def may_lower_scale(self) -> bool:
        """Return whether a gradient that is not finite may be so only for the loss scale."""
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

    def figures(self) -> dict[str, float]:
        """Return what a row of metrics should tell of it."""
        return {"loss_scale": float(self._scaler.get_scale())} if self._scaler.is_enabled() else {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""
        return dict(self._scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        if self._scaler.is_enabled() and state:
            self._scaler.load_state_dict(state)
