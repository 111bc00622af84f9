"""Memory for time: a network in training keeps less for the backward pass, and computes it again there.

A block that is computed again keeps only its inputs (activation checkpointing; Chen et al., "Training Deep Nets with
Sublinear Memory Cost", section 4). Its gradient is the same to the last digit, and its batch norm takes the statistics
of the first time alone. Where that is not enough, a micro-batch passes in parts, of which one at a time is computed
again; the loss is still that of the whole micro-batch. Then batch norm normalises each part by itself, and its running
statistics take the mean of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class MemorySaving:
    """What a network in training computes twice."""

    blocks: frozenset[str] = frozenset()
    """Names of the blocks that are computed again in the backward pass."""
    num_parts: int = 1
    """Parts of a micro-batch that pass one after the other."""

    def run_block(self, name: str, block: nn.Module, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return a block's results for its inputs."""
        is_kept = name not in self.blocks or not torch.is_grad_enabled()
        results: Sequence[Tensor] = block(*inputs) if is_kept else _compute_again(block, block, *inputs)
        return results

    def run_in_parts(
        self, forward: Callable[[Tensor], list[Tensor]], network: nn.Module, images: Tensor
    ) -> list[Tensor]:
        """Return the levels that a network's forward pass gives for the images (B, 3, H, W), part by part."""
        if self.num_parts == 1 or not torch.is_grad_enabled():
            return forward(images)
        parts = images.chunk(self.num_parts)
        levels = []
        for position, part in enumerate(parts):
            with _momentum_of_part(network, position, len(parts)):
                levels.append(_compute_again(network, forward, part))
        return [torch.cat(level) for level in zip(*levels, strict=True)]


def _compute_again(module: nn.Module, function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Return a function's result; the backward pass computes what is inside anew, without moving running statistics."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_statistics(module)

    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d) and layer.training]


@contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norm write its running statistics into copies, which are dropped."""
    kept = [(layer, layer.running_mean, layer.running_var) for layer in _batch_norms(module)]
    counts = [layer.num_batches_tracked for layer, _, _ in kept]
    for layer, mean, variance in kept:
        assert mean is not None and variance is not None
        layer.running_mean, layer.running_var, layer.num_batches_tracked = mean.clone(), variance.clone(), None
    try:
        yield
    finally:
        for (layer, mean, variance), count in zip(kept, counts, strict=True):
            layer.running_mean, layer.running_var, layer.num_batches_tracked = mean, variance, count


@contextmanager
def _momentum_of_part(network: nn.Module, position: int, num_parts: int) -> Iterator[None]:
    """Give batch norm the momentum with which all parts together move the statistics by their mean, and once."""
    layers = _batch_norms(network)
    kept = [layer.momentum for layer in layers]
    for layer, momentum in zip(layers, kept, strict=True):
        share = float(momentum or 0.0) / num_parts
        layer.momentum = share / (1 - share * (num_parts - position - 1)) if share else 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, kept, strict=True):
            layer.momentum = momentum
