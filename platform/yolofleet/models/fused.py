"""The fused form: the deployed form with activations computed inside the convolutions, fastest on a CPU.

A convolution and its activation are one call of oneDNN, the library that torch computes convolutions with on a CPU:
the result is activated while it is in the registers, where a separate pass would read and write the whole map once
more. Weights are brought into oneDNN's own order when the form is built, not in each call. Every map has its channels
innermost.

It is for CPUs of the x86 family with AVX2 and builds of torch with oneDNN (see `can_be_fused`), and it only predicts:
no gradient, no weights to save, nothing to export. Its weights are a second copy of the model's. The result is compared
with the original before it is handed out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from yolofleet.models.deployment import DeploymentError, prove, random_images
from yolofleet.models.graph import Conv, Size
from yolofleet.models.modules import LEAKY_SLOPE, ConvNormAct
from yolofleet.models.network import Network
from yolofleet.models.profile import block_sizes, check_size
from yolofleet.models.wiring import IMAGE, Source, wire

ACTIVATIONS: dict[str | None, tuple[str, list[float]]] = {
    None: ("none", []),
    "silu": ("swish", []),
    "leaky_relu": ("leaky_relu", [LEAKY_SLOPE]),
}
"""oneDNN's names of the activations that it computes inside a convolution, and their numbers."""
CAPABILITIES = ("AVX2", "AVX512")
"""What torch must have found in the processor."""
OPERATORS = ("_convolution_pointwise", "_reorder_convolution_weight")
"""Of torch.ops.mkldnn."""

logger = logging.getLogger(__name__)


def fastest_form(model: Network, image_size: int) -> Network:
    """Return what predicts fastest where a model lies: its fused form, or the model itself where it has none.

    A fused form that does not compute what the model does is never used: the model is returned, and a warning logged.

    Args:
        model: A detector in evaluation mode.
        image_size: As for `fused_form`.
    """
    if not can_be_fused(model):
        return model
    try:
        return fused_form(model, image_size)
    except DeploymentError as error:
        logger.warning("activations are not computed inside the convolutions, which is slower: %s", error)
        return model


def can_be_fused(model: Network) -> bool:
    """Return whether a detector has a fused form here: deployed, float32, on a CPU that torch has the operators for."""
    return (
        model.deployed
        and all(weights.dtype == torch.float32 and weights.device.type == "cpu" for weights in model.parameters())
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() in CAPABILITIES
        and all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)
    )


def fused_form(model: Network, image_size: int) -> Network:
    """Return the fused form of a deployed detector, in evaluation mode; the original is left as it is.

    Args:
        model: One that `can_be_fused`.
        image_size: Side of the images that it mostly gets; weights are laid out for it, any other size works too.

    Raises:
        DeploymentError: It does not compute what the original does; says by how much.
    """
    with torch.device("meta"):
        fused = Network(model.table, model.num_classes, deployed=True)
    fused.anchors = model.anchors
    for name, input_size in _convolutions(model, image_size):
        module = model.get_submodule(name)
        conv, activation = (module.conv, module.activation) if isinstance(module, ConvNormAct) else (module, None)
        assert isinstance(conv, nn.Conv2d)
        fits = activation in ACTIVATIONS
        fused.set_submodule(name, FusedConvolution(conv, activation, input_size) if fits else module)
    fused.eval()
    prove(model, fused, random_images(model))
    return fused


def _convolutions(model: Network, image_size: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the name of each convolution, and the size (B, C, H, W) that comes in for one image."""
    graph = wire(model.table)
    check_size(graph, (image_size, image_size))
    sizes: dict[Source, Size] = {(IMAGE, ""): (image_size, image_size)}
    for block in graph.blocks:
        if block.auxiliary:
            continue
        for position, (node, (height, width)) in enumerate(
            zip(block.graph.nodes, block_sizes(block, sizes), strict=True)
        ):
            if isinstance(layer := node.layer, Conv):
                size = [1, layer.in_channels, height * layer.stride, width * layer.stride]
                yield f"blocks.{block.name}.{position}", size
    for level, (source, channels) in enumerate(zip(graph.lead, graph.lead_channels, strict=True)):
        yield f"head.lead.{level}", [1, channels, *sizes[source]]


class FusedConvolution(nn.Module):
    """A convolution with bias and its activation, in one call."""

    def __init__(self, conv: nn.Conv2d, activation: str | None, input_size: list[int]) -> None:
        """Reorder a convolution's weights for inputs (B, C, H, W) of a size."""
        super().__init__()
        assert conv.bias is not None
        self.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
        self._arguments = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._activation, self._numbers = ACTIVATIONS[activation]
        self._weight: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self._arguments, input_size
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self.bias, *self._arguments, self._activation, self._numbers, None
        )
        return result
