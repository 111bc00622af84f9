"""A block as a small graph of layer descriptions, and the builder that block functions write it with.

A description knows the size of its output, its parameters and its multiply-accumulates, before any tensor exists. The
modules that compute are built from these descriptions and a profile is summed from them, so both count the same graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural

MOST_CHANNELS = 2**20
MOST_STRIDE = 2**14
"""As large as the largest image."""

Size = tuple[int, int]
"""Height and width, in pixels."""


class Conv(NamedTuple):
    """Convolution without bias, batch norm, activation; with ``rep`` further branches in training (RepConv)."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int
    activation: str | None
    rep: bool = False
    identity: bool = False

    @property
    def padding(self) -> int:
        """Pixels added on each side; keeps the size at stride 1 with an odd kernel."""
        return (self.kernel - 1) // 2

    def size(self, size: Size) -> Size:
        """Return the size of the output."""
        if self.stride == 1 and self.kernel % 2:
            return size
        reach = 2 * self.padding - self.kernel
        return (size[0] + reach) // self.stride + 1, (size[1] + reach) // self.stride + 1

    def weights(self, deployed: bool) -> int:
        """Return the number of convolution weights, without biases and batch norm."""
        taps = self.kernel * self.kernel + (1 if self.rep and not deployed else 0)
        return self.out_channels * (self.in_channels // self.groups) * taps

    def parameters(self, deployed: bool) -> int:
        """Return the number of parameters: with a bias when deployed, with batch norms in training."""
        if deployed:
            return self.weights(True) + self.out_channels
        num_norms = 1 + self.rep + self.identity
        return self.weights(False) + 2 * num_norms * self.out_channels


class Pool(NamedTuple):
    """Max pool; at stride 1 it keeps the size."""

    kernel: int
    stride: int

    def size(self, size: Size) -> Size:
        """Return the size of the output."""
        return size if self.stride == 1 else ((size[0] - 2) // 2 + 1, (size[1] - 2) // 2 + 1)


class Upsample(NamedTuple):
    """Nearest neighbour, twice the size."""


class Concat(NamedTuple):
    """Channels of all inputs, one after the other."""


class Add(NamedTuple):
    """Sum of two equal shapes."""


class SecondHalf(NamedTuple):
    """The second half of the channels (a view)."""


class Reorg(NamedTuple):
    """Space to depth by 2."""


class Shuffle(NamedTuple):
    """Brings the channels of each group together: (segment, group, channel) becomes (group, segment, channel)."""

    segments: tuple[int, ...]
    groups: int


class MergeGroups(NamedTuple):
    """Sum of the groups of channels, the last group first (merge cardinality)."""

    groups: int


Layer = Conv | Pool | Upsample | Concat | Add | SecondHalf | Reorg | Shuffle | MergeGroups


Rep = Literal["none", "planned", "identity"]
"""Whether a convolution is a RepConv, and whether its identity branch follows the plan or is forced."""


def elan_rep(positions: tuple[str, ...], index: int) -> Rep:
    """Return the form of a stacked convolution (index from 0) in an ELAN block with RepConv at these positions."""
    return _rep_at(positions, "second" if index % 2 else "first")


def residual_rep(positions: tuple[str, ...]) -> Rep:
    """Return the form of the 3x3 convolution in a residual block with RepConv at these positions."""
    return _rep_at(positions, "residual")


def _rep_at(positions: tuple[str, ...], position: str) -> Rep:
    if f"{position}+identity" in positions:
        return "identity"
    return "planned" if position in positions else "none"


class GraphError(UserError):
    """A block table does not make a valid graph; names the block and the numbers."""


class Feature(NamedTuple):
    """A feature map inside a block."""

    number: int
    channels: int
    stride: int


class Node(NamedTuple):
    """One layer, the features it reads (the block's inputs count from 0, then its nodes), and its channels."""

    layer: Layer
    inputs: tuple[int, ...]
    channels: int


@dataclass(frozen=True, slots=True)
class BlockGraph:
    """A block, ready to be computed or counted."""

    inputs: tuple[Feature, ...]
    nodes: tuple[Node, ...]
    outputs: dict[str, Feature]
    """The block's result under the empty name, and its taps."""

    @property
    def num_weights(self) -> int:
        """Weights of its convolutions in training."""
        return sum(node.layer.weights(False) for node in self.nodes if isinstance(node.layer, Conv))


class BlockBuilder:
    """Collects the layers of one block."""

    def __init__(self, inputs: Sequence[tuple[int, int]], activation: str) -> None:
        """Start a block.

        Args:
            inputs: Channels and stride (pixels of the image a cell) of each input.
            activation: Activation of its convolutions.
        """
        self.inputs = tuple(Feature(number, *shape) for number, shape in enumerate(inputs))
        self._activation = activation
        self._nodes: list[Node] = []
        self._planned: list[int] = []

    def conv(
        self, x: Feature, out: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, rep: Rep = "none"
    ) -> Feature:
        """Add a convolution with batch norm and activation."""
        if x.channels % groups or out % groups:
            raise GraphError(f"{plural(x.channels, 'channel')} in and {out} out do not divide into {groups} groups")
        may_have_identity = rep != "none" and x.channels == out and stride == 1
        identity = may_have_identity and rep == "identity"
        layer = Conv(x.channels, out, kernel, stride, groups, self._activation, rep != "none", identity)
        feature = self._add(layer, (x,), out, x.stride * stride)
        if may_have_identity and rep == "planned":
            self._planned.append(len(self._nodes) - 1)
        return feature

    def pool(self, x: Feature, kernel: int, stride: int = 1) -> Feature:
        """Add a max pool."""
        return self._add(Pool(kernel, stride), (x,), x.channels, x.stride * stride)

    def pool_pyramid(self, x: Feature, sides: Sequence[int]) -> list[Feature]:
        """Add max pools of growing sides (stride 1), each of them computed from the one before.

        A pool of 5 over a pool of 5 is a pool of 9: the same maximum of fewer numbers.
        """
        pools: list[Feature] = []
        for side, before in zip(sides, (1, *sides), strict=False):
            pools.append(self.pool(pools[-1] if pools else x, side - before + 1))
        return pools

    def upsample(self, x: Feature) -> Feature:
        """Double the size."""
        if x.stride % 2:
            raise GraphError(f"a map of stride {x.stride} cannot be doubled in size")
        return self._add(Upsample(), (x,), x.channels, x.stride // 2)

    def concat(self, features: Iterable[Feature]) -> Feature:
        """Concatenate channels."""
        parts = tuple(features)
        if len({part.stride for part in parts}) > 1:
            raise GraphError(f"maps of strides {', '.join(str(part.stride) for part in parts)} cannot be concatenated")
        return self._add(Concat(), parts, sum(part.channels for part in parts), parts[0].stride)

    def add(self, x: Feature, y: Feature) -> Feature:
        """Add two maps."""
        if x.channels != y.channels or x.stride != y.stride:
            raise GraphError(
                f"channel mismatch: {plural(x.channels, 'channel')} at stride {x.stride} cannot be added to "
                f"{y.channels:,} at stride {y.stride}"
            )
        return self._add(Add(), (x, y), x.channels, x.stride)

    def second_half(self, x: Feature) -> Feature:
        """Take the second half of the channels."""
        if x.channels % 2:
            raise GraphError(f"{plural(x.channels, 'channel')} cannot be halved")
        return self._add(SecondHalf(), (x,), x.channels // 2, x.stride)

    def reorg(self, x: Feature) -> Feature:
        """Turn 2x2 pixels into channels."""
        return self._add(Reorg(), (x,), 4 * x.channels, x.stride * 2)

    def shuffle(self, x: Feature, segments: tuple[int, ...], groups: int) -> Feature:
        """Bring the channels of each group together; ``segments`` are the widths a group has in each part."""
        return self._add(Shuffle(segments, groups), (x,), x.channels, x.stride)

    def merge_groups(self, x: Feature, groups: int) -> Feature:
        """Add the groups of channels."""
        return self._add(MergeGroups(groups), (x,), x.channels // groups, x.stride)

    def finish(self, outputs: dict[str, Feature]) -> BlockGraph:
        """Decide the identity branches that follow the plan, and return the block."""
        for index in self._planned:
            if self._may_keep_identity(index):
                node = self._nodes[index]
                assert isinstance(node.layer, Conv)
                self._nodes[index] = node._replace(layer=node.layer._replace(identity=True))
        return BlockGraph(self.inputs, tuple(self._nodes), outputs)

    def _may_keep_identity(self, index: int) -> bool:
        """Tell whether RepConv may have an identity branch: not where its result is added or concatenated (4.1)."""
        feature = index + len(self.inputs)
        return not any(feature in node.inputs and isinstance(node.layer, Add | Concat) for node in self._nodes)

    def _add(self, layer: Layer, inputs: tuple[Feature, ...], channels: int, stride: int) -> Feature:
        if channels > MOST_CHANNELS or stride > MOST_STRIDE:
            raise GraphError(
                f"a map of {plural(channels, 'channel')} at stride {stride:,}, more than {MOST_CHANNELS:,} channels or "
                f"{MOST_STRIDE:,} pixels"
            )
        self._nodes.append(Node(layer, tuple(feature.number for feature in inputs), channels))
        return Feature(len(self.inputs) + len(self._nodes) - 1, channels, stride)
