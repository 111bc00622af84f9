"""Cost of a model, in total and for each block, from its block table by shape arithmetic.

No tensor is made: a model takes about a millisecond. Cost is counted on the same layer descriptions that the modules
are built from. One multiply-accumulate counts as two operations; only convolutions are counted, as the paper's tables
do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.models.graph import Conv, Pool, Reorg, Size, Upsample
from yolofleet.models.wiring import IMAGE, ModelGraph, Source, WiredBlock, wire
from yolofleet.specs.model import ModelTable

GIGA = 1e9
NOT_SHOWN = ("name", "block", "from", "inputs", "out")


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters and operations of one form of a model, for one image."""

    parameters: int
    multiply_accumulates: int
    conv_outputs: int
    """Elements in the outputs of convolutions."""
    biased_outputs: int
    """Of those, the ones that get a bias: all when folded, else the predictions."""
    norm_outputs: int
    """Elements in the outputs of batch norms."""
    conv_weights: int
    """Of the parameters, the weights of convolutions."""

    @property
    def gflops(self) -> float:
        """Two operations a multiply-accumulate."""
        return 2 * self.multiply_accumulates / GIGA

    @property
    def gflops_with_bias(self) -> float:
        """The same with each bias as a multiply-accumulate: the rule of most rows in the paper's tables."""
        return 2 * (self.multiply_accumulates + self.biased_outputs) / GIGA

    @property
    def gflops_with_norm(self) -> float:
        """The same with batch norm as two of them an element: the paper's rows of unfolded models."""
        return self.gflops_with_bias + 4 * self.norm_outputs / GIGA


@dataclass(frozen=True, slots=True)
class Profile:
    """A model in ``yolofleet models list``."""

    name: str
    parameters: int
    parameters_deployed: int
    gflops: float
    gflops_deployed: float
    image_size: int
    num_classes: int
    num_levels: int
    num_auxiliary_levels: int
    max_stride: int
    note: str | None

    def document(self) -> dict[str, Any]:
        """Return the profile as plain JSON values."""
        return asdict(self)


def profile(table: ModelTable, *, num_classes: int = 80, image_size: int | None = None) -> Profile:
    """Profile a table in training and in deployed form.

    Args:
        table: A block table.
        num_classes: Classes to predict.
        image_size: Side of the square image in pixels; the table's own unless given.

    Raises:
        UserError: The table is not a valid graph, or the image size does not fit its strides.
    """
    graph = wire(table)
    size = image_size or table.image_size
    training = cost(graph, num_classes=num_classes, size=(size, size))
    deployed = cost(graph, num_classes=num_classes, size=(size, size), folded=True, auxiliary=False)
    return Profile(
        name=table.name,
        parameters=training.parameters,
        parameters_deployed=deployed.parameters,
        gflops=round(training.gflops, 4),
        gflops_deployed=round(deployed.gflops, 4),
        image_size=size,
        num_classes=num_classes,
        num_levels=len(graph.lead),
        num_auxiliary_levels=len(graph.auxiliary),
        max_stride=graph.max_stride,
        note=table.note,
    )


def cost(graph: ModelGraph, *, num_classes: int, size: Size, folded: bool = False, auxiliary: bool = True) -> Cost:
    """Count one form of a model.

    Args:
        graph: A wired table.
        num_classes: Classes to predict.
        size: Height and width of the image, in pixels.
        folded: Batch norm, RepConv and implicit knowledge folded away.
        auxiliary: With the auxiliary head.
    """
    check_size(graph, size)
    parameters = weights = macs = outputs = norms = 0
    sizes: dict[Source, Size] = {(IMAGE, ""): size}
    for block in graph.blocks:
        if block.auxiliary and not auxiliary:
            continue
        for layer, (height, width) in zip(
            (node.layer for node in block.graph.nodes), block_sizes(block, sizes), strict=True
        ):
            if isinstance(layer, Conv):
                area = height * width
                parameters += layer.parameters(folded)
                layer_weights = layer.weights(folded)
                weights += layer_weights
                macs += layer_weights * area
                branches = 1 if folded else 1 + layer.rep
                outputs += layer.out_channels * area * branches
                norms += 0 if folded else layer.out_channels * area * (branches + layer.identity)
    head = _head_cost(graph, sizes, num_classes, folded, auxiliary)
    outputs += head.conv_outputs
    return Cost(
        parameters=parameters + head.parameters,
        multiply_accumulates=macs + head.multiply_accumulates,
        conv_outputs=outputs,
        biased_outputs=outputs if folded else head.conv_outputs,
        norm_outputs=norms,
        conv_weights=weights + head.conv_weights,
    )


def _head_cost(graph: ModelGraph, sizes: dict[Source, Size], num_classes: int, folded: bool, auxiliary: bool) -> Cost:
    """Count the predictions."""
    out = graph.table.num_anchors * (5 + num_classes)
    weights = macs = outputs = extra = 0
    levels = list(zip(graph.lead, graph.lead_channels, strict=True))
    if auxiliary:
        levels += zip(graph.auxiliary, graph.auxiliary_channels, strict=True)
    for source, channels in levels:
        height, width = sizes[source]
        weights += out * channels
        extra += out
        macs += out * channels * height * width
        outputs += out * height * width
    if graph.table.head.implicit and not folded:
        extra += sum(channels + out for channels in graph.lead_channels)
    return Cost(weights + extra, macs, outputs, outputs, 0, weights)


def block_sizes(block: WiredBlock, sizes: dict[Source, Size]) -> list[Size]:
    """Return the size that each node of a block puts out, and add those of its outputs to ``sizes``.

    Args:
        block: A block whose inputs are all in ``sizes``.
        sizes: Height and width of every feature so far.
    """
    inside = [sizes[source] for source in block.sources]
    num_inputs = len(inside)
    for node in block.graph.nodes:
        layer = node.layer
        height, width = inside[node.inputs[0]]
        if isinstance(layer, Conv | Pool):
            inside.append(layer.size((height, width)))
        elif isinstance(layer, Upsample):
            inside.append((2 * height, 2 * width))
        elif isinstance(layer, Reorg):
            inside.append((height // 2, width // 2))
        else:
            inside.append((height, width))
    for tap, feature in block.graph.outputs.items():
        sizes[block.name, tap] = inside[feature.number]
    return inside[num_inputs:]


def check_size(graph: ModelGraph, size: Size) -> None:
    """Refuse an image size that the network cannot halve often enough.

    Raises:
        UserError: A side is not a multiple of the largest stride.
    """
    if size[0] <= 0 or size[1] <= 0 or size[0] % graph.max_stride or size[1] % graph.max_stride:
        raise UserError(
            f"model {graph.table.name}: image size {size[0]} x {size[1]} must be a multiple of its largest stride, "
            f"{graph.max_stride}"
        )


@dataclass(frozen=True, slots=True)
class BlockLine:
    """One block of a model in training form."""

    name: str
    block: str
    sources: tuple[str, ...]
    channels: int
    stride: int
    settings: str
    convolutions: int
    parameters: int
    gflops: float


def block_lines(graph: ModelGraph, size: Size) -> list[BlockLine]:
    """Return a line for each block; the predictions' 1x1 convolutions are not among them.

    Args:
        graph: A wired table.
        size: Height and width of the image that operations are counted for, in pixels.
    """
    check_size(graph, size)
    sizes: dict[Source, Size] = {(IMAGE, ""): size}
    lines = []
    for position, block in enumerate(graph.blocks):
        convs = [
            (node.layer, height * width)
            for node, (height, width) in zip(block.graph.nodes, block_sizes(block, sizes), strict=True)
            if isinstance(node.layer, Conv)
        ]
        result = block.graph.outputs[""]
        lines.append(
            BlockLine(
                name=block.name,
                block=block.kind,
                sources=tuple(f"{name}.{tap}" if tap else name for name, tap in block.sources),
                channels=result.channels,
                stride=result.stride,
                settings=_settings(graph.table, position),
                convolutions=sum(1 + layer.rep for layer, _ in convs),
                parameters=sum(layer.parameters(False) for layer, _ in convs),
                gflops=round(2 * sum(layer.weights(False) * area for layer, area in convs) / GIGA, 4),
            )
        )
    return lines


def _settings(table: ModelTable, position: int) -> str:
    """Return the settings of a row beside its name, kind, inputs and width; auxiliary convolutions have no row."""
    if position >= len(table.blocks):
        return "training only"
    values = table.blocks[position].model_dump(mode="json", exclude_defaults=True)
    return ", ".join(f"{key} {_format(value)}" for key, value in values.items() if key not in NOT_SHOWN)


def _format(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return "yes" if value is True else "no" if value is False else str(value)
