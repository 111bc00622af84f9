"""The published names of every weight: each layer of the published graphs has a number, which follows by counting.

A plain convolution, concatenation, pool, up-sampling or sum is one layer of its own, ``model.N``; blocks such as
SPPCSPC are one layer with inner names. The order is that of our blocks, so the number follows from the table.

Two layouts are published. They number the layers alike, and differ in the names inside SPPCSPC, RepConv and the
detection layer, and in what stands before the number: nothing, ``model.``, ``layers.``, or the names of a trainer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.models.graph import Conv
from yolofleet.models.modules import ConvNormAct, RepConv
from yolofleet.models.network import Network
from yolofleet.models.wiring import ModelGraph, WiredBlock, wire
from yolofleet.specs.blocks import CspRow, DarkRow, Row

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
UNPUBLISHED_KINDS = ("alternate", "pools", "osa")
OWN_PREFIX = "blocks."
LAYER = re.compile(r"(?P<prefix>(?:[A-Za-z_]\w*\.)*)(?P<number>\d+)\.(?P<inner>.+)")
HEAD_OF_PERMISSIVE = re.compile(r"heads\.(\d+)\.(head_conv|implicit_a|implicit_m)\.")
HEAD_PARTS = {"head_conv": "m", "implicit_a": "ia", "implicit_m": "im"}
INSIDE_PERMISSIVE = {
    "pre_conv.0.": "cv1.",
    "short_conv.": "cv2.",
    "pre_conv.1.": "cv3.",
    "pre_conv.2.": "cv4.",
    "post_conv.0.": "cv5.",
    "post_conv.1.": "cv6.",
    "merge_conv.": "cv7.",
    "conv1.conv.": "rbr_dense.0.",
    "conv1.bn.": "rbr_dense.1.",
    "conv2.conv.": "rbr_1x1.0.",
    "conv2.bn.": "rbr_1x1.1.",
}
"""How names inside a layer begin in the permissively licensed layout, and in the other."""


def in_published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict of either layout, with any prefix, by the names ``model.N...``.

    Where a training state holds two copies of a model, the averaged one (``ema.``) is taken. What is not of a model
    (terms of a loss, figures) is left out. A state dict of our own names is returned as it is.

    Raises:
        UserError: It holds several models, and none of them is the average.
    """
    if holds_own_names(state):
        return dict(state)
    copies: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if layer := LAYER.fullmatch(name):
            official = f"model.{layer['number']}.{_official_inner(layer['inner'])}"
            copies.setdefault(layer["prefix"], {})[official] = tensor
    whole = {prefix: copy for prefix, copy in copies.items() if any(_is_prediction(name) for name in copy)}
    averaged = {prefix: copy for prefix, copy in whole.items() if "ema" in prefix.split(".")}
    chosen = averaged or whole or copies
    if len(chosen) > 1 and whole:
        raise UserError(f"it holds {len(chosen)} models ({', '.join(sorted(chosen))}); keep the weights of one of them")
    return next(iter(chosen.values())) if len(chosen) == 1 else dict(state)


def holds_own_names(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has our own names, and no published ones."""
    return any(name.removeprefix("module.").startswith(OWN_PREFIX) for name in state)


def has_permissive_layout(state: Mapping[str, Tensor]) -> bool:
    """Return whether weights are named as in the permissively licensed layout."""
    return any("heads.0.head_conv." in name for name in state)


def _official_inner(inner: str) -> str:
    if found := HEAD_OF_PERMISSIVE.match(inner):
        return f"{HEAD_PARTS[found[2]]}.{found[1]}.{inner[found.end() :]}"
    for theirs, official in INSIDE_PERMISSIVE.items():
        if inner.startswith(theirs):
            return official + inner.removeprefix(theirs)
    return inner


def _is_prediction(name: str) -> bool:
    return name.endswith(".m.0.weight")


def official_parameter_names(model: Network, *, deploy_layout: bool = False) -> dict[str, str]:
    """Return published name -> name in ``model.state_dict()``, buffers of batch norm included.

    Args:
        model: A model of the zoo, in training or deployed form.
        deploy_layout: Count as the published deployment graphs do, which lack the auxiliary convolutions.

    Raises:
        UserError: The model's blocks have no published numbering.
    """
    graph = wire(model.table)
    names: dict[str, str] = {}
    number = 0
    for block, row in _blocks_and_rows(graph):
        if block.auxiliary and deploy_layout:
            continue
        numbers, num_layers = _layer_numbers(block, row)
        for position, (offset, inner) in numbers.items():
            ours = f"blocks.{block.name}.{position}"
            if block.name in model.blocks:
                official = f"model.{number + offset}" + (f".{inner}" if inner else "")
                names.update(_module_names(model.get_submodule(ours), official, ours))
        number += num_layers
    names.update(_head_names(model, f"model.{number}", with_auxiliary=not deploy_layout))
    return names


def head_prefix(model: Network, *, deploy_layout: bool = False) -> str:
    """Return the published name of the detection layer, e.g. ``model.105``."""
    graph = wire(model.table)
    number = sum(
        _layer_numbers(block, row)[1]
        for block, row in _blocks_and_rows(graph)
        if not (block.auxiliary and deploy_layout)
    )
    return f"model.{number}"


def _blocks_and_rows(graph: ModelGraph) -> Iterator[tuple[WiredBlock, Row | None]]:
    """Pair the blocks with their rows; auxiliary convolutions have none."""
    rows: list[Row | None] = list(graph.table.blocks)
    rows += [None] * (len(graph.blocks) - len(rows))
    yield from zip(graph.blocks, rows, strict=True)


def _layer_numbers(block: WiredBlock, row: Row | None) -> tuple[dict[int, tuple[int, str]], int]:
    """Return each convolution's (layer number within the block, inner name), by its position, and the layer count."""
    convs = [position for position, node in enumerate(block.graph.nodes) if isinstance(node.layer, Conv)]
    inner = _inner_names(block, row, len(convs))
    if inner:
        # One composite layer; a merge concatenates after it.
        num_layers = 2 if block.kind == "merge_down" else 1
        return {position: (0, name) for position, name in zip(convs, inner, strict=True)}, num_layers
    return {position: (position, "") for position in convs}, len(block.graph.nodes)


def _inner_names(block: WiredBlock, row: Row | None, num_convs: int) -> list[str]:
    """Return the convolutions' names inside a composite layer, in our order; none for blocks of plain layers."""
    if block.kind in UNPUBLISHED_KINDS or (isinstance(row, CspRow) and row.form == "darknet"):
        raise UserError(
            f"block {block.name} ({block.kind}): weights of this model are not published under 'model.N' names"
        )
    if isinstance(row, CspRow):
        return _csp_names(row)
    if isinstance(row, DarkRow):
        convs = ["cv1", "cv2"]
        return convs if row.stack == 1 else [f"{index}.{conv}" for index in range(row.stack) for conv in convs]
    split = getattr(row, "method", None) == "split"
    if split or block.kind in ("sppcspc", "spp", "res_stem"):
        return [f"cv{index + 1}" for index in range(num_convs)]
    return []


def _csp_names(row: CspRow) -> list[str]:
    per_block = 2 if row.residual == "dark" else 3
    stack = [f"m.{index}.cv{conv + 1}" for index in range(row.stack) for conv in range(per_block)]
    before = ["cv1"] if row.form == "b" else ["cv1", "cv2"]
    after = ["cv3", "cv4"] if row.form == "c" else ["cv2", "cv3"] if row.form == "b" else ["cv3"]
    return [*before, *stack, *after]


def _module_names(module: nn.Module, official: str, ours: str) -> Iterator[tuple[str, str]]:
    if isinstance(module, RepConv):
        branches = [("rbr_dense", "conv", "norm"), ("rbr_1x1", "pointwise", "pointwise_norm")]
        for branch, conv, norm in branches:
            yield f"{official}.{branch}.0.weight", f"{ours}.{conv}.weight"
            for field in NORM:
                yield f"{official}.{branch}.1.{field}", f"{ours}.{norm}.{field}"
        if module.identity_norm is not None:
            for field in NORM:
                yield f"{official}.rbr_identity.{field}", f"{ours}.identity_norm.{field}"
    elif isinstance(module, ConvNormAct):
        yield f"{official}.conv.weight", f"{ours}.conv.weight"
        if module.norm is None:
            yield f"{official}.conv.bias", f"{ours}.conv.bias"
        else:
            for field in NORM:
                yield f"{official}.bn.{field}", f"{ours}.norm.{field}"


def _head_names(model: Network, official: str, *, with_auxiliary: bool) -> Iterator[tuple[str, str]]:
    head = model.head
    for level in range(len(head.lead)):
        for field in ("weight", "bias"):
            yield f"{official}.m.{level}.{field}", f"head.lead.{level}.{field}"
    if not with_auxiliary:
        return
    for level in range(len(head.auxiliary)):
        for field in ("weight", "bias"):
            yield f"{official}.m2.{level}.{field}", f"head.auxiliary.{level}.{field}"
    for level in range(len(head.add)):
        yield f"{official}.ia.{level}.implicit", f"head.add.{level}.value"
        yield f"{official}.im.{level}.implicit", f"head.multiply.{level}.value"
