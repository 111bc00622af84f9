"""The torch modules of a model: one for each layer description, and a block that runs its graph.

Features are released after their last use, and activations overwrite their input where the gradient allows it: both
decide how large a micro-batch fits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolofleet.models.graph import (
    Add,
    BlockGraph,
    Concat,
    Conv,
    Layer,
    MergeGroups,
    Pool,
    Reorg,
    SecondHalf,
    Shuffle,
    Upsample,
)

BATCH_NORM_MOMENTUM = 0.03
LEAKY_SLOPE = 0.1


def activate(x: Tensor, activation: str | None) -> Tensor:
    """Apply an activation to a tensor that nothing else reads.

    LeakyReLU overwrites it: its gradient follows from its result. SiLU and Mish need their input for the gradient, so
    they overwrite it only where no gradient is recorded.
    """
    if activation is None:
        return x
    if activation == "leaky_relu":
        return F.leaky_relu(x, LEAKY_SLOPE, inplace=True)
    inplace = not torch.is_grad_enabled()
    return F.silu(x, inplace=inplace) if activation == "silu" else F.mish(x, inplace=inplace)


def lay_channels_innermost(module: nn.Module) -> None:
    """Lay convolution weights out with the channels innermost: the fastest layout, on CPUs as on GPUs.

    Features follow their convolutions' weights. A fresh training form is laid out plainly, as the published models
    were: so their predictions can be reproduced to the last digit, rounding included.
    """
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _convolution(layer: Conv, kernel: int, *, bias: bool) -> nn.Conv2d:
    padding = layer.padding if kernel == layer.kernel else 0
    return nn.Conv2d(
        layer.in_channels, layer.out_channels, kernel, layer.stride, padding, groups=layer.groups, bias=bias
    )


class ConvNormAct(nn.Module):
    """Convolution, batch norm, activation; deployed, a convolution with bias and the activation."""

    def __init__(self, layer: Conv, epsilon: float, *, deployed: bool) -> None:
        super().__init__()
        self.activation = layer.activation
        self.conv = _convolution(layer, layer.kernel, bias=deployed)
        self.norm = None if deployed else nn.BatchNorm2d(layer.out_channels, epsilon, BATCH_NORM_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return activate(x, self.activation)


class RepConv(nn.Module):
    """3x3 and 1x1 convolutions side by side, each with batch norm, and perhaps a batch norm of the input itself.

    Without the last one it is the paper's RepConvN (section 4.1). All fold into one 3x3 convolution.
    """

    def __init__(self, layer: Conv, epsilon: float) -> None:
        super().__init__()
        self.activation = layer.activation
        self.conv = _convolution(layer, layer.kernel, bias=False)
        self.norm = nn.BatchNorm2d(layer.out_channels, epsilon, BATCH_NORM_MOMENTUM)
        self.pointwise = _convolution(layer, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(layer.out_channels, epsilon, BATCH_NORM_MOMENTUM)
        self.identity_norm = (
            nn.BatchNorm2d(layer.out_channels, epsilon, BATCH_NORM_MOMENTUM) if layer.identity else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        # Batch norm keeps its input for the gradient, never its result: the sum may overwrite it.
        total = self.norm(self.conv(x))
        total += self.pointwise_norm(self.pointwise(x))
        if self.identity_norm is not None:
            total += self.identity_norm(x)
        return activate(total, self.activation)


class Concatenate(nn.Module):
    """Channels of all inputs, one after the other."""

    def forward(self, *parts: Tensor) -> Tensor:
        """Map [(B, C_i, H, W)] to (B, sum C_i, H, W)."""
        return torch.cat(parts, 1)


class Sum(nn.Module):
    """Sum of two maps."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map two (B, C, H, W) to one."""
        return x + y


class SecondHalfOfChannels(nn.Module):
    """The second half of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C / 2, H, W)."""
        return x[:, x.shape[1] // 2 :]


class SpaceToDepth(nn.Module):
    """2x2 pixels become channels: even rows and columns, then odd rows, then odd columns, then both odd."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 4 C, H / 2, W / 2)."""
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


class ShuffleGroups(nn.Module):
    """Brings the channels of each group together."""

    def __init__(self, layer: Shuffle) -> None:
        super().__init__()
        self.segments, self.groups = layer.segments, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, segments x groups x width, H, W) to (B, groups x segments x width, H, W)."""
        parts = torch.split(x, [width * self.groups for width in self.segments], 1)
        return torch.cat([part.chunk(self.groups, 1)[group] for group in range(self.groups) for part in parts], 1)


class SumOfGroups(nn.Module):
    """Adds the groups of channels, the last group first."""

    def __init__(self, layer: MergeGroups) -> None:
        super().__init__()
        self.groups = layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, groups x C, H, W) to (B, C, H, W)."""
        *others, total = x.chunk(self.groups, 1)
        for other in reversed(others):
            total = total + other
        return total


def build_module(layer: Layer, epsilon: float, *, deployed: bool) -> nn.Module:
    """Return the module of a layer description."""
    match layer:
        case Conv():
            return (
                RepConv(layer, epsilon)
                if layer.rep and not deployed
                else ConvNormAct(layer, epsilon, deployed=deployed)
            )
        case Pool(kernel=kernel, stride=stride):
            return nn.MaxPool2d(kernel, stride, padding=kernel // 2 if stride == 1 else 0)
        case Upsample():
            return nn.Upsample(scale_factor=2, mode="nearest")
        case Concat():
            return Concatenate()
        case Add():
            return Sum()
        case SecondHalf():
            return SecondHalfOfChannels()
        case Reorg():
            return SpaceToDepth()
        case Shuffle():
            return ShuffleGroups(layer)
        case MergeGroups():
            return SumOfGroups(layer)


class Block(nn.ModuleList):
    """A block's layers, run in the order of its graph; a feature is released after its last use."""

    def __init__(self, graph: BlockGraph, epsilon: float, *, deployed: bool) -> None:
        super().__init__(build_module(node.layer, epsilon, deployed=deployed) for node in graph.nodes)
        self._reads = tuple(node.inputs for node in graph.nodes)
        self._outputs = tuple(feature.number for feature in graph.outputs.values())
        self._released = _last_uses(self._reads, self._outputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the block.

        Args:
            inputs: Feature maps (B, C, H, W), in the order that the row names them.

        Returns:
            The block's result, then its taps.
        """
        features: dict[int, Tensor] = dict(enumerate(inputs))
        num_inputs = len(inputs)
        for position, (layer, reads) in enumerate(zip(self, self._reads, strict=True)):
            features[num_inputs + position] = layer(*(features[index] for index in reads))
            for index in self._released[position]:
                del features[index]
        return tuple(features[index] for index in self._outputs)


def _last_uses(reads: tuple[tuple[int, ...], ...], kept: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return, for each layer, the features that nothing reads after it."""
    last: dict[int, int] = {index: position for position, indices in enumerate(reads) for index in indices}
    return tuple(
        tuple(index for index in sorted(set(indices)) if last[index] == position and index not in kept)
        for position, indices in enumerate(reads)
    )
