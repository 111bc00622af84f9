"""The detector: the wired blocks of a table, run one after the other, and its head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.models.head import Head, decode
from yolofleet.models.modules import Block, lay_channels_innermost
from yolofleet.models.wiring import IMAGE, ModelGraph, Source, wire
from yolofleet.specs.model import ModelTable


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
    """

    anchors: Tensor

    def __init__(self, table: ModelTable, num_classes: int, *, deployed: bool = False) -> None:
        """Build a table with fresh weights.

        Raises:
            UserError: The table is no valid graph, or there is no class.
        """
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a detector needs at least one class, not {num_classes}")
        graph = wire(table)
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
            results = self.blocks[step.name](*(features[source] for source in step.sources))
            features.update(zip(step.outputs, results, strict=True))
            for source in step.released:
                del features[source]
        return features


class Step:
    """One block's turn: what it reads, what it puts out, and what may be let go after it."""

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
