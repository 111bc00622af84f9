"""Forecast of the memory of a training step, from the block table by shape arithmetic.

What autograd keeps for the backward pass is counted on the layer descriptions: a convolution keeps its input, batch
norm its input and two numbers a channel, SiLU and Mish their input, LeakyReLU its result (it is applied in place), a
max pool its input and an index an element, a multiplication both factors. Concatenation, sums and up-sampling keep
nothing. A map that two layers keep is kept once.

A block that is computed again in the backward pass (``memory: balanced`` or ``small``) keeps its inputs alone; what it
would have kept inside is there for one such block at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from yolofleet.models.graph import Conv, Pool, SecondHalf, Size
from yolofleet.models.profile import block_sizes, check_size, cost
from yolofleet.models.wiring import IMAGE, IMAGE_CHANNELS, ModelGraph, Source, WiredBlock

INDEX_BYTES = 8
FLOAT32_BYTES = 4
ZERO_BUCKET_BYTES = FLOAT32_BYTES << 24
"""Gradients that workers exchange at once under ZeRO."""
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

Precision = Literal["fp32", "fp16", "bf16"]
Strategy = Literal["ddp", "zero1", "zero2"]
MemoryUse = Literal["fast", "balanced", "small"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "zero1", "zero2")


BALANCED_SHARE = 0.5
"""Of what the blocks keep inside, ``balanced`` saves at least so much, where it costs the fewest operations."""


def recomputed_blocks(graph: ModelGraph, memory: MemoryUse) -> frozenset[str]:
    """Return the names of the blocks that are computed again in the backward pass."""
    if memory == "fast":
        return frozenset()
    if memory == "small":
        return frozenset(block.name for block in graph.blocks)
    side = 2 * graph.max_stride
    sizes: dict[Source, Size] = {(IMAGE, ""): (side, side)}
    elements: dict[Source, int] = {(IMAGE, ""): IMAGE_CHANNELS * side**2}
    saved: dict[str, int] = {}
    operations: dict[str, int] = {}
    for block in graph.blocks:
        saved[block.name] = _block(block, sizes, elements, set()).values
        height, width = sizes[block.name, ""]
        operations[block.name] = 1 + block.graph.num_weights * height * width
    chosen: set[str] = set()
    for name in sorted(saved, key=lambda name: saved[name] / operations[name], reverse=True):
        if sum(saved[other] for other in chosen) >= BALANCED_SHARE * sum(saved.values()):
            break
        chosen.add(name)
    return frozenset(chosen)


def activation_bytes(
    graph: ModelGraph,
    *,
    num_classes: int,
    size: Size,
    micro_batch_size: int,
    precision: Precision = "fp32",
    memory: MemoryUse = "fast",
) -> int:
    """Forecast the bytes that the forward pass of a micro-batch keeps for the backward pass.

    Args:
        graph: A wired table, counted in training form.
        num_classes: Classes to predict.
        size: Height and width of the images, in pixels.
        micro_batch_size: Images that pass through the network together.
        precision: Of the activations. Batch statistics are kept in float32; below it, a copy of the convolution weights
            in that precision is kept as well.
        memory: Which blocks are computed again.
    """
    check_size(graph, size)
    value_bytes = VALUE_BYTES[precision]
    per_image = 0
    fixed = 0
    sizes: dict[Source, Size] = {(IMAGE, ""): size}
    elements: dict[Source, int] = {(IMAGE, ""): IMAGE_CHANNELS * size[0] * size[1]}
    kept: set[Source] = set()
    recomputed = recomputed_blocks(graph, memory)
    largest_inside = 0
    for block in graph.blocks:
        if block.name in recomputed:
            kept.update(block.sources)
            inside: set[Source] = set()
            counted = _block(block, sizes, elements, inside)
            values = counted.values + sum(elements[source] for source in inside.difference(block.sources))
            largest_inside = max(largest_inside, values * value_bytes + counted.indices * INDEX_BYTES)
            continue
        counted = _block(block, sizes, elements, kept)
        per_image += counted.values * value_bytes + counted.indices * INDEX_BYTES
        fixed += counted.statistics * FLOAT32_BYTES
    per_image += _head_values(graph, sizes, elements, kept, num_classes) * value_bytes
    per_image += sum(elements[source] for source in kept) * value_bytes + largest_inside
    if precision != "fp32":
        fixed += cost(graph, num_classes=num_classes, size=size).conv_weights * value_bytes
    return per_image * micro_batch_size + fixed


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes that training needs on each worker, without the accelerator's own reserve and workspaces."""

    strategy: Strategy
    num_workers: int
    weights: int
    gradients: int
    momentum: int
    """The optimiser's moving averages of the gradients."""
    average: int
    """The moving average of the weights."""
    exchange: int
    """What several workers need besides: gradients on their way, and under ZeRO a copy of the own share of weights."""
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        state = self.weights + self.gradients + self.momentum + self.average
        return state + self.exchange + self.activations


def training_memory(
    graph: ModelGraph,
    *,
    num_classes: int,
    size: Size,
    micro_batch_size: int,
    precision: Precision = "fp32",
    strategy: Strategy = "ddp",
    num_workers: int = 1,
    moments: int = 1,
    memory: MemoryUse = "fast",
) -> TrainingMemory:
    """Forecast the memory of training on one worker.

    Weights, gradients, momentum and the averaged weights are float32. ZeRO 1 shares the momentum out among the workers,
    ZeRO 2 the gradients too, which it exchanges in buckets; either steps on a copy of its own share of the weights.
    Under ``ddp`` the gradients of earlier micro-batches lie beside the buckets that are exchanged, which hold as much.

    Args:
        graph: A wired table.
        num_classes: Classes to predict.
        size: Height and width of the images, in pixels.
        micro_batch_size: Images that pass through the network together.
        precision: Of the activations.
        strategy: ``ddp``, ``zero1`` or ``zero2``.
        num_workers: Workers that share.
        moments: Moving averages that the optimiser keeps of each gradient: 1 for SGD, 2 for Adam.
        memory: Which blocks are computed again in the backward pass.
    """
    weights = cost(graph, num_classes=num_classes, size=size).parameters * FLOAT32_BYTES
    share = -(-weights // num_workers)
    buckets = min(ZERO_BUCKET_BYTES, weights)
    return TrainingMemory(
        strategy=strategy,
        num_workers=num_workers,
        weights=weights,
        gradients=share if strategy == "zero2" else weights,
        momentum=moments * (weights if strategy == "ddp" else share),
        average=weights,
        exchange={"ddp": weights if num_workers > 1 else 0, "zero1": share, "zero2": share + buckets}[strategy],
        activations=activation_bytes(
            graph,
            num_classes=num_classes,
            size=size,
            micro_batch_size=micro_batch_size,
            precision=precision,
            memory=memory,
        ),
    )


@dataclass(slots=True)
class _Kept:
    """What one block keeps inside, for one image."""

    values: int = 0
    indices: int = 0
    statistics: int = 0


def _block(block: WiredBlock, sizes: dict[Source, Size], elements: dict[Source, int], kept: set[Source]) -> _Kept:
    """Count what a block keeps inside; its inputs and outputs, which other blocks may keep too, go into ``kept``."""
    num_inputs = len(block.sources)
    counted = _Kept()
    made = [elements[source] for source in block.sources]
    keeps: set[int] = set()
    for number, (node, (height, width)) in enumerate(
        zip(block.graph.nodes, block_sizes(block, sizes), strict=True), start=num_inputs
    ):
        made.append(node.channels * height * width)
        layer = node.layer
        if isinstance(layer, Conv):
            num_branches = 1 + layer.rep
            counted.values += made[number] * num_branches  # the inputs of the batch norms
            counted.statistics += 2 * layer.out_channels * (num_branches + layer.identity)
            keeps.add(_storage(block, node.inputs[0]))
            if layer.activation == "leaky_relu":
                keeps.add(number)
            elif layer.activation is not None:
                counted.values += made[number]
        elif isinstance(layer, Pool):
            counted.indices += made[number]
            keeps.add(node.inputs[0])
    outputs = {feature.number: (block.name, tap) for tap, feature in block.graph.outputs.items()}
    elements.update({source: made[number] for number, source in outputs.items()})
    for number in keeps:
        if number < num_inputs:
            kept.add(block.sources[number])
        elif number in outputs:
            kept.add(outputs[number])
        else:
            counted.values += made[number]
    return counted


def _storage(block: WiredBlock, number: int) -> int:
    """Return the feature whose memory a feature is a view of: itself, unless it is half of another."""
    position = number - len(block.sources)
    if position >= 0 and isinstance(block.graph.nodes[position].layer, SecondHalf):
        return block.graph.nodes[position].inputs[0]
    return number


def _head_values(
    graph: ModelGraph, sizes: dict[Source, Size], elements: dict[Source, int], kept: set[Source], num_classes: int
) -> int:
    """Count what the head keeps beside its inputs: with implicit knowledge, two maps a level."""
    values = 0
    out = graph.table.num_anchors * (5 + num_classes)
    for source in graph.lead:
        if graph.table.head.implicit:
            height, width = sizes[source]
            values += elements[source] + out * height * width
        else:
            kept.add(source)
    kept.update(graph.auxiliary)
    return values
