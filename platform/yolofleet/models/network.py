"""The detector: the wired blocks of a table, run one after the other, and the prediction head behind them.

The head is a 1x1 convolution for each level, whose values are decoded to boxes. With implicit knowledge (YOLOR; paper
section 4.3) a learned vector is added to its input, and another one multiplied with its output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.models.graph import Conv
from yolofleet.models.modules import Block, lay_channels_innermost
from yolofleet.models.weight_differences import Shape
from yolofleet.models.wiring import IMAGE, MOST_WEIGHTS, ModelGraph, Source, wire
from yolofleet.specs.model import ModelTable

if TYPE_CHECKING:
    from yolofleet.models.memory_saving import MemorySaving

DEVIATION = 0.02
OBJECTS_AT_START = 8.0
"""Objects expected in an image of 640 px, for the first objectness bias."""
PRIOR_IMAGE_SIZE = 640
CLASS_PRIOR = 0.6
BOX_AND_OBJECTNESS = 5


def _random_value(channels: int, mean: float) -> nn.Parameter:
    value = nn.Parameter(torch.empty(1, channels, 1, 1))
    if not value.is_meta:  # there are no values to draw, and torch would import code for seconds to draw none
        nn.init.normal_(value, mean, DEVIATION)
    return value


class ImplicitAdd(nn.Module):
    """Adds a learned value to each channel; starts near 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = _random_value(channels, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.value


class ImplicitMultiply(nn.Module):
    """Multiplies each channel by a learned value; starts near 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = _random_value(channels, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x * self.value


class Head(nn.Module):
    """Lead predictions, and in the training form those of the auxiliary head."""

    def __init__(
        self,
        lead_channels: Sequence[int],
        auxiliary_channels: Sequence[int],
        *,
        num_anchors: int,
        num_classes: int,
        strides: Sequence[int],
        implicit: bool,
    ) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        out = num_anchors * (BOX_AND_OBJECTNESS + num_classes)
        self.lead = nn.ModuleList(nn.Conv2d(channels, out, 1) for channels in lead_channels)
        self.auxiliary = nn.ModuleList(nn.Conv2d(channels, out, 1) for channels in auxiliary_channels)
        self.add = nn.ModuleList(ImplicitAdd(channels) for channels in lead_channels if implicit)
        self.multiply = nn.ModuleList(ImplicitMultiply(out) for _ in lead_channels if implicit)
        for convs in (self.lead, self.auxiliary):
            for conv, stride in zip(convs, strides, strict=False):
                _start_biases(conv, num_anchors, num_classes, stride)

    def forward(self, lead: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> list[Tensor]:
        """Predict.

        Args:
            lead: The lead levels' features, (B, C, H, W) each.
            auxiliary: Those of the auxiliary levels; none where only the lead head is wanted.

        Returns:
            Raw predictions (B, anchors, H, W, 5 + classes), lead levels first.
        """
        raw = []
        for level, x in enumerate(lead):
            has_implicit = len(self.add) > 0
            z = self.lead[level](self.add[level](x) if has_implicit else x)
            raw.append(self._by_anchor(self.multiply[level](z) if has_implicit else z))
        for level, x in enumerate(auxiliary):
            raw.append(self._by_anchor(self.auxiliary[level](x)))
        return raw

    def _by_anchor(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.view(batch, self.num_anchors, channels // self.num_anchors, height, width)
        return x.permute(0, 1, 3, 4, 2).contiguous()  # (B, anchors, H, W, 5 + classes)


def _start_biases(conv: nn.Module, num_anchors: int, num_classes: int, stride: int) -> None:
    """Start objectness and classes at their expected frequency, on top of the usual random bias."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    with torch.no_grad():
        bias = conv.bias.view(num_anchors, -1)
        bias[:, 4] += math.log(OBJECTS_AT_START / (PRIOR_IMAGE_SIZE / stride) ** 2)
        bias[:, 5:] += math.log(CLASS_PRIOR / (num_classes - 0.99))


def decode(raw: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Turn the lead levels' raw predictions into boxes and scores.

    Args:
        raw: One tensor (B, anchors, H, W, 5 + classes) a level.
        anchors: (levels, anchors, 2), width and height in pixels.
        strides: Pixels a cell, of each level.

    Returns:
        (B, boxes, 5 + classes): centre x, centre y, width, height in pixels, objectness, class scores; boxes are
        ordered by level, anchor, row, column.
    """
    return torch.cat([_decode_level(x, anchors[level], strides[level]) for level, x in enumerate(raw)], 1)


def _decode_level(raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
    batch, num_anchors, height, width, num_values = raw.shape
    # Half precision would round a position of 1000 px to whole pixels, bfloat16 to steps of 4.
    raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
    scores = raw.sigmoid()
    rows = torch.arange(height, device=raw.device, dtype=raw.dtype)
    columns = torch.arange(width, device=raw.device, dtype=raw.dtype)
    corner = torch.stack((columns.expand(height, width), rows[:, None].expand(height, width)), -1)  # (H, W, 2)
    centre = (scores[..., 0:2] * 2 - 0.5 + corner) * stride
    size = (scores[..., 2:4] * 2) ** 2 * anchors.to(raw.dtype).view(1, num_anchors, 1, 1, 2)
    decoded = torch.cat((centre, size, scores[..., 4:]), -1)
    return decoded.view(batch, num_anchors * height * width, num_values)


class Network(nn.Module):
    """A detector of the family.

    Attributes:
        table: The block table it is.
        num_classes: Classes it predicts.
        deployed: Whether it is the deployed form: no batch norm, RepConv, implicit knowledge or auxiliary head.
        anchors: Buffer (levels, anchors, 2): width and height in pixels.
        strides: Pixels a cell, of each level.
        max_stride: Image sides are multiples of it.
        num_auxiliary_levels: Auxiliary levels that ``raw`` returns after the lead ones.
        memory_saving: What is computed twice in training, to save memory; None: nothing.
    """

    anchors: Tensor
    memory_saving: MemorySaving | None = None

    def __init__(self, table: ModelTable, num_classes: int, *, deployed: bool = False) -> None:
        """Build a table with fresh weights.

        Raises:
            UserError: The table is not a valid graph, or there is no class.
        """
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a detector needs at least one class, not {num_classes}")
        graph = wire(table)
        num_predictions = table.num_anchors * (BOX_AND_OBJECTNESS + num_classes)
        if num_predictions * sum(graph.lead_channels) > MOST_WEIGHTS:
            raise UserError(
                f"model {table.name}: {num_predictions:,} predictions a cell, of "
                f"{plural(table.num_anchors, 'anchor')} and {plural(num_classes, 'class')}, are more than its head may "
                "have; use fewer"
            )
        self.table = table
        self.num_classes = num_classes
        self.deployed = deployed
        self.strides = graph.strides
        self.max_stride = graph.max_stride
        blocks = [block for block in graph.blocks if not (deployed and block.auxiliary)]
        if taken := [block.name for block in blocks if hasattr(nn.ModuleDict, block.name)]:
            raise UserError(f"model {table.name}: block {taken[0]}: torch keeps that name for itself; choose another")
        self.blocks = nn.ModuleDict(
            {block.name: Block(block.graph, table.batch_norm_epsilon, deployed=deployed) for block in blocks}
        )
        self.head = Head(
            graph.lead_channels,
            () if deployed else graph.auxiliary_channels,
            num_anchors=table.num_anchors,
            num_classes=num_classes,
            strides=graph.strides,
            implicit=table.head.implicit and not deployed,
        )
        self.register_buffer("anchors", torch.tensor(table.anchors).view(len(table.anchors), -1, 2))
        self._lead = graph.lead
        self._auxiliary = () if deployed else graph.auxiliary
        self._schedule = _schedule(graph, (*self._lead, *self._auxiliary), auxiliary=not deployed)
        self.lead_schedule = _schedule(graph, self._lead, auxiliary=False)
        if deployed:
            lay_channels_innermost(self)

    @property
    def num_auxiliary_levels(self) -> int:
        """Auxiliary levels that ``raw`` returns after the lead ones."""
        return len(self._auxiliary)

    def forward(self, images: Tensor) -> list[Tensor] | Tensor:
        """Predict.

        Args:
            images: (B, 3, H, W) in 0..1, sides multiples of ``max_stride``.

        Returns:
            In training mode what ``raw`` returns; in evaluation mode decoded predictions (B, boxes, 5 + classes), boxes
            as cx cy w h in pixels, without the auxiliary head's work.
        """
        if self.training:
            return self.raw(images)
        return decode(self.lead(images), self.anchors, self.strides)

    def lead(self, images: Tensor) -> list[Tensor]:
        """Return the lead levels of ``raw`` alone; nothing of the auxiliary head is computed."""
        features = self._run(images, self.lead_schedule)
        raw: list[Tensor] = self.head([features[source] for source in self._lead], ())
        return raw

    def raw(self, images: Tensor) -> list[Tensor]:
        """Return raw head tensors (B, anchors, H, W, 5 + classes): lead levels, fine to coarse, then auxiliary ones."""
        if self.memory_saving is not None:
            return self.memory_saving.run_in_parts(self._raw, self, images)
        return self._raw(images)

    def _raw(self, images: Tensor) -> list[Tensor]:
        features = self._run(images, self._schedule)
        raw: list[Tensor] = self.head(
            [features[source] for source in self._lead], [features[source] for source in self._auxiliary]
        )
        return raw

    def decode(self, raw: list[Tensor]) -> Tensor:
        """Turn raw head tensors into decoded predictions (B, boxes, 5 + classes); auxiliary levels are left out."""
        return decode(raw[: len(self.strides)], self.anchors, self.strides)

    def _run(self, images: Tensor, schedule: list[Step]) -> dict[Source, Tensor]:
        if images.shape[-2] % self.max_stride or images.shape[-1] % self.max_stride:
            raise UserError(
                f"model {self.table.name}: image sides {tuple(images.shape[-2:])} must be multiples of "
                f"{self.max_stride}"
            )
        features: dict[Source, Tensor] = {(IMAGE, ""): images}
        for step in schedule:
            block, inputs = self.blocks[step.name], [features[source] for source in step.sources]
            saving = self.memory_saving
            results = block(*inputs) if saving is None else saving.run_block(step.name, block, inputs)
            del inputs
            features.update(zip(step.outputs, results, strict=True))
            for source in step.released:
                del features[source]
        return features


def convolution_shapes(table: ModelTable, *, deployed: bool) -> dict[str, Shape]:
    """Return the shape of the weight of each block's convolutions by its name in a state dict; no module is built.

    Raises:
        UserError: The table is not a valid graph.
    """
    return {
        f"blocks.{block.name}.{position}.conv.weight": Shape(
            (layer.out_channels, layer.in_channels // layer.groups, layer.kernel, layer.kernel)
        )
        for block in wire(table).blocks
        if not (deployed and block.auxiliary)
        for position, layer in enumerate(node.layer for node in block.graph.nodes)
        if isinstance(layer, Conv)
    }


class Step:
    """One block in the order of computation: its inputs, its outputs, and the features released after it."""

    def __init__(self, name: str, sources: tuple[Source, ...], outputs: tuple[Source, ...]) -> None:
        self.name, self.sources, self.outputs = name, sources, outputs
        self.released: tuple[Source, ...] = ()


def _schedule(graph: ModelGraph, kept: tuple[Source, ...], *, auxiliary: bool) -> list[Step]:
    steps = [
        Step(block.name, block.sources, tuple((block.name, tap) for tap in block.graph.outputs))
        for block in graph.blocks
        if auxiliary or not block.auxiliary
    ]
    last_reader = {source: step for step in steps for source in step.sources}
    for step in steps:
        unread = [source for source in step.outputs if source not in last_reader]
        done = [source for source in dict.fromkeys(step.sources) if last_reader[source] is step]
        step.released = tuple(source for source in (*done, *unread) if source not in kept)
    return steps
