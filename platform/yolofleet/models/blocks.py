"""The blocks: one function for each kind of row of a block table, which writes the row out as layers.

The order of the layers is the order of the published weights. Sources: paper Figure 2 (ELAN, E-ELAN) and section 5.1
(tiny, P5 and P6 models), Table 1 for the baselines (YOLOR, Scaled-YOLOv4, YOLOv4, YOLOv3, YOLOR-u5, r50-csp); where the
paper is silent, the published implementation's graph.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Any

from yolofleet.models.graph import BlockBuilder, BlockGraph, Feature, elan_rep, residual_rep
from yolofleet.specs.blocks import (
    ROWS,
    AlternateRow,
    ConvRow,
    CspRow,
    DarkRow,
    DownRow,
    DownSampling,
    ElanRow,
    MergeDownRow,
    MergeUpRow,
    OsaRow,
    PoolsRow,
    ReorgRow,
    ResStemRow,
    Row,
    SppcspcRow,
    SppRow,
    SppTinyRow,
    UpConcatRow,
    row_kind,
)

Outputs = Feature | dict[str, Feature]
BlockFunction = Callable[[BlockBuilder, Any], Outputs]
"""Writes a row out as layers: it takes the builder and the row, and returns the block's map, or maps by tap name."""


def dark(net: BlockBuilder, row: DarkRow) -> Feature:
    """Dark blocks of YOLOv3: 1x1 to half the width, 3x3 back, added to the input."""
    x = net.inputs[0]
    for _ in range(row.stack):
        x = _dark_block(net, x, row.out, row.out // 2, row)
    return x


def _dark_block(net: BlockBuilder, x: Feature, out: int, inside: int, row: DarkRow | CspRow) -> Feature:
    rep = residual_rep(row.rep)
    y = (
        net.conv(net.conv(x, inside, 3, rep=rep), out)
        if row.reverse
        else net.conv(net.conv(x, inside), out, 3, rep=rep)
    )
    return net.add(x, y) if row.shortcut else y


def csp(net: BlockBuilder, row: CspRow) -> Feature:
    """Cross-stage partial block: a stack of residual blocks beside a shortcut, concatenated."""
    x = net.inputs[0]
    width = row.hidden or (row.out if row.form == "b" else row.out // 2)
    match row.form:
        case "a":
            path, shortcut = net.conv(x, width), net.conv(x, width)
            return net.conv(net.concat([_residual_stack(net, path, width, row), shortcut]), row.out)
        case "b":
            stem = net.conv(x, width)
            path = _residual_stack(net, stem, width, row)
            return net.conv(net.concat([path, net.conv(stem, width)]), row.out)
        case "c":
            path, shortcut = net.conv(x, width), net.conv(x, width)
            path = net.conv(_residual_stack(net, path, width, row), width)
            return net.conv(net.concat([path, shortcut]), row.out)
        case "darknet":
            shortcut, path = net.conv(x, width), net.conv(x, width)
            path = net.conv(_residual_stack(net, path, width, row), width)
            return net.conv(net.concat([path, shortcut]), row.out)


def _residual_stack(net: BlockBuilder, x: Feature, width: int, row: CspRow) -> Feature:
    for _ in range(row.stack):
        x = _residual_block(net, x, width, row)
    return x


def _residual_block(net: BlockBuilder, x: Feature, width: int, row: CspRow) -> Feature:
    if row.residual == "dark":
        return _dark_block(net, x, width, width // 2 if row.narrow else width, row)
    inside = width if row.residual == "resx" else width // 2
    # 32 groups, or as many as a scaled width divides into.
    groups = gcd(32, inside) if row.residual == "resx" else 1
    y = net.conv(net.conv(net.conv(x, inside), inside, 3, groups=groups, rep=residual_rep(row.rep)), width)
    return net.add(x, y) if row.shortcut else y


def alternate(net: BlockBuilder, row: AlternateRow) -> Feature:
    """1x1 and 3x3 convolutions in turn."""
    x = net.inputs[0]
    for position in range(row.convs):
        x = net.conv(x, 2 * row.out, 3) if position % 2 else net.conv(x, row.out)
    return x


def spp(net: BlockBuilder, row: SppRow) -> Feature:
    """Spatial pyramid pooling."""
    x = net.conv(net.inputs[0], net.inputs[0].channels // 2)
    return net.conv(net.concat([x, *net.pool_pyramid(x, (5, 9, 13))]), row.out)


def osa(net: BlockBuilder, row: OsaRow) -> dict[str, Feature]:
    """One-shot aggregation of half the channels; all of the first convolution is concatenated."""
    x = net.conv(net.inputs[0], row.hidden, 3)
    first = net.conv(net.second_half(x), row.hidden // 2, 3)
    second = net.conv(first, row.hidden // 2, 3)
    partial = net.conv(net.concat([second, first]), row.hidden)
    return {"": net.concat([x, partial]), "partial": partial}


def res_stem(net: BlockBuilder, row: ResStemRow) -> Feature:
    """Stride 4: a strided convolution, then a strided one beside a max pool."""
    half = row.out // 2
    x = net.conv(net.inputs[0], half, 3, stride=2)
    strided = net.conv(net.conv(x, half), half, 3, stride=2)
    return net.conv(net.concat([strided, net.pool(x, 2, stride=2)]), row.out)


def build_block(row: Row, inputs: list[tuple[int, int]], activation: str) -> BlockGraph:
    """Write one row out as layers.

    Args:
        row: The row of the table.
        inputs: Channels and stride of each of its inputs.
        activation: The table's activation.

    Raises:
        GraphError: Channels or strides do not fit.
    """
    net = BlockBuilder(inputs, row.activation or activation)
    outputs = _BLOCKS[type(row)](net, row)
    return net.finish(outputs if isinstance(outputs, dict) else {"": outputs})


def conv(net: BlockBuilder, row: ConvRow) -> Feature:
    """Convolution, batch norm, activation; RepConv without identity where the widths differ."""
    return net.conv(net.inputs[0], row.out, row.kernel, row.stride, rep="planned" if row.rep else "none")


def reorg(net: BlockBuilder, row: ReorgRow) -> Feature:
    """Space to depth by 2."""
    return net.reorg(net.inputs[0])


def elan(net: BlockBuilder, row: ElanRow) -> Outputs:
    """Efficient layer aggregation; with two groups the extended one (paper Figure 2 c, d)."""
    if row.groups == 1:
        parts = _elan_parts(net, row)
        return {"": net.conv(parts, row.out), "parts": parts}
    if row.merge == "grouped":
        return _elan_grouped(net, row)
    first = net.conv(_elan_parts(net, row), row.out)
    second = net.conv(_elan_parts(net, row), row.out)
    return {"": net.add(second, first), "second": second}


def _elan_parts(net: BlockBuilder, row: ElanRow) -> Feature:
    """Return what the closing convolution of a branch reads."""
    x = net.inputs[0]
    shortcut = net.conv(x, row.hidden)
    chain = [net.conv(x, row.hidden)]
    for position in range(row.stack):
        chain.append(net.conv(chain[-1], row.chain or row.hidden, 3, rep=elan_rep(row.rep, position)))
    return net.concat([*_tapped(chain, row), chain[0], shortcut])


def _elan_grouped(net: BlockBuilder, row: ElanRow) -> Outputs:
    """Expand (the groups side by side), shuffle, merge cardinality: the two branches as group convolutions."""
    x, groups = net.inputs[0], row.groups
    shortcut = net.conv(x, row.hidden * groups)
    chain = [net.conv(x, row.hidden * groups)]
    for position in range(row.stack):
        width = (row.chain or row.hidden) * groups
        chain.append(net.conv(chain[-1], width, 3, groups=groups, rep=elan_rep(row.rep, position)))
    parts = [*_tapped(chain, row), chain[0], shortcut]
    shuffled = net.shuffle(net.concat(parts), tuple(part.channels // groups for part in parts), groups)
    closing = net.conv(shuffled, row.out * groups, groups=groups)
    return {"": net.merge_groups(closing, groups), "second": net.second_half(closing)}


def _tapped(chain: list[Feature], row: ElanRow) -> list[Feature]:
    """Return the stacked convolutions that are concatenated, the last one first."""
    return chain[1:][::-1] if row.taps == "all" else chain[2::2][::-1]


def down(net: BlockBuilder, row: DownRow) -> Feature:
    """Halve the resolution."""
    parts = _down_parts(net, row.method, row.out)
    return parts[0] if len(parts) == 1 else net.concat(parts)


def merge_down(net: BlockBuilder, row: MergeDownRow) -> Feature:
    """Bottom-up merge: [below, beside] -> down-sampled below, then beside."""
    return net.concat([*_down_parts(net, row.method, row.out), net.inputs[1]])


def _down_parts(net: BlockBuilder, method: DownSampling, out: int | None) -> list[Feature]:
    """Down-sample the first input; parts are left for the caller to concatenate."""
    x = net.inputs[0]
    out = out or x.channels
    match method:
        case "pool":
            return [net.pool(x, 2, stride=2)]
        case "conv":
            return [net.conv(x, out, 3, stride=2)]
        case "pool_conv":
            pooled = net.conv(net.pool(x, 2, stride=2), out // 2)
            return [net.conv(net.conv(x, out // 2), out // 2, 3, stride=2), pooled]
        case "split":
            strided = net.conv(net.conv(x, x.channels), out // 2, 3, stride=2)
            return [net.concat([strided, net.conv(net.pool(x, 2, stride=2), out // 2)])]


def merge_up(net: BlockBuilder, row: MergeUpRow) -> Feature:
    """Top-down merge: [lateral, upper] -> both narrowed, the upper one doubled in size."""
    lateral, upper = net.inputs
    doubled = net.upsample(net.conv(upper, row.out))
    return net.concat([net.conv(lateral, row.out), doubled])


def up_concat(net: BlockBuilder, row: UpConcatRow) -> Feature:
    """Double the size of the first input, concatenate the second as it is."""
    return net.concat([net.upsample(net.inputs[0]), net.inputs[1]])


def sppcspc(net: BlockBuilder, row: SppcspcRow) -> Feature:
    """Pyramid pooling on one of two cross-stage paths."""
    x, width = net.inputs[0], row.out
    opening = net.conv(x, width)
    shortcut = net.conv(x, width)
    path = net.conv(net.conv(opening, width, 3), width)
    pooled = net.concat([path, *net.pool_pyramid(path, row.pools)])
    path = net.conv(net.conv(pooled, width), width, 3)
    return net.conv(net.concat([path, shortcut]), width)


def spp_tiny(net: BlockBuilder, row: SppTinyRow) -> Feature:
    """Pyramid pooling of yolov7-tiny: no 3x3 convolutions."""
    x, width = net.inputs[0], row.out
    shortcut = net.conv(x, width)
    path = net.conv(x, width)
    pooled = net.conv(net.concat([*reversed(net.pool_pyramid(path, (5, 9, 13))), path]), width)
    return net.conv(net.concat([pooled, shortcut]), width)


def pools(net: BlockBuilder, row: PoolsRow) -> Feature:
    """Max pools of the input, the largest first, then the input."""
    x = net.inputs[0]
    return net.concat([*reversed(net.pool_pyramid(x, row.sizes)), x])


_BLOCKS: dict[type[Row], BlockFunction] = {
    ConvRow: conv,
    ReorgRow: reorg,
    ElanRow: elan,
    DownRow: down,
    MergeDownRow: merge_down,
    MergeUpRow: merge_up,
    UpConcatRow: up_concat,
    SppcspcRow: sppcspc,
    SppTinyRow: spp_tiny,
    PoolsRow: pools,
    DarkRow: dark,
    CspRow: csp,
    AlternateRow: alternate,
    SppRow: spp,
    OsaRow: osa,
    ResStemRow: res_stem,
}
"""The function of each kind of row."""


def register_block(row: type[Row]) -> Callable[[BlockFunction], BlockFunction]:
    """Return a decorator that registers a block: its row in a table, and the function that writes its layers.

    Args:
        row: A subclass of `Row` whose field ``block`` is a literal: the name of the block in a table. Fields marked
            `Transition`, `Hidden` or `Stack` follow compound scaling.

    Raises:
        UserError: The name is taken.
    """

    def add(function: BlockFunction) -> BlockFunction:
        ROWS.register(row_kind(row))(row)
        _BLOCKS[row] = function
        return function

    return add
