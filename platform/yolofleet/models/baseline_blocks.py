"""The blocks of the baselines: YOLOR, Scaled-YOLOv4, YOLOv4, YOLOv3, YOLOR-u5, r50-csp (paper Table 1).

The order of the layers is the order of the published weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd
from types import MappingProxyType

from yolofleet.models.graph import BlockBuilder, Feature
from yolofleet.models.reparameterize import residual_rep
from yolofleet.specs.blocks import AlternateRow, CspRow, DarkRow, OsaRow, ResStemRow, Row, SppRow


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
    """1x1 and 3x3 convolutions by turns."""
    x = net.inputs[0]
    for position in range(row.convs):
        x = net.conv(x, 2 * row.out, 3) if position % 2 else net.conv(x, row.out)
    return x


def spp(net: BlockBuilder, row: SppRow) -> Feature:
    """Spatial pyramid pooling."""
    x = net.conv(net.inputs[0], net.inputs[0].channels // 2)
    return net.conv(net.concat([x, *net.pool_pyramid(x, (5, 9, 13))]), row.out)


def osa(net: BlockBuilder, row: OsaRow) -> dict[str, Feature]:
    """One-shot aggregation of half the channels; all of the first convolution goes on beside it."""
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


BLOCKS: Mapping[type[Row], Callable[..., Feature | dict[str, Feature]]] = MappingProxyType(
    {DarkRow: dark, CspRow: csp, AlternateRow: alternate, SppRow: spp, OsaRow: osa, ResStemRow: res_stem}
)
"""The function of each kind of row."""
