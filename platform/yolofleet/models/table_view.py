"""A model as a reader sees it: one line a block, with what comes out of it and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from yolofleet.models.layers import Conv, Size
from yolofleet.models.profile import GIGA, block_sizes, check_size
from yolofleet.models.wiring import IMAGE, ModelGraph, Source
from yolofleet.specs.model import ModelTable

NOT_SHOWN = ("name", "block", "from", "inputs", "out")


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
    """Return what a row says beside its name, kind, inputs and width; auxiliary convolutions have no row."""
    if position >= len(table.blocks):
        return "training only"
    values = table.blocks[position].model_dump(mode="json", exclude_defaults=True)
    return ", ".join(f"{key} {_shown(value)}" for key, value in values.items() if key not in NOT_SHOWN)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return "yes" if value is True else "no" if value is False else str(value)
