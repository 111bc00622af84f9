"""Implicit knowledge (YOLOR; paper section 4.3): a learned vector, added to or multiplied with a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEVIATION = 0.02


class ImplicitAdd(nn.Module):
    """Adds a learned value to each channel; starts near 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(1, channels, 1, 1))
        nn.init.normal_(self.value, 0.0, DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.value


class ImplicitMultiply(nn.Module):
    """Multiplies each channel by a learned value; starts near 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(1, channels, 1, 1))
        nn.init.normal_(self.value, 1.0, DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x * self.value
