"""What a block is made of: descriptions of layers with their arithmetic, before any tensor exists.

A description knows the size it puts out, its parameters and its multiply-accumulates. The modules that compute are
built from these descriptions, and a profile is summed from them, so both speak of the same graph.
"""

from __future__ import annotations

from typing import NamedTuple

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
        """Return the size that comes out."""
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
        """Return the size that comes out."""
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
