"""The two ways to compute an E-ELAN block (paper section 3.1, Figure 2 d), and the way from one to the other.

As the paper tells it, group convolution expands channels and cardinality, the results are shuffled into groups, each as
wide as the original block, and the groups are added. The published graph computes two separate ELAN blocks on the same
input and adds them. Group g of every convolution is then block g's convolution, so the weights of the one are those of
the other, stacked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.models.graph import Add, Conv
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.models.network import Network
from yolofleet.models.wiring import WiredBlock, wire
from yolofleet.specs.blocks import ElanRow


def grouped_form(model: Network) -> Network:
    """Return a model with its E-ELAN blocks as group convolution, shuffle and merge; it computes the same.

    Args:
        model: A training-form model whose E-ELAN blocks are computed as branches; left as it is.

    Raises:
        UserError: The model has no such block, or is deployed.
    """
    table = model.table
    rows = tuple(
        row.model_copy(update={"merge": "grouped"}) if isinstance(row, ElanRow) and row.groups > 1 else row
        for row in table.blocks
    )
    if rows == table.blocks or model.deployed:
        raise UserError(f"model {table.name}: it has no E-ELAN blocks in branch form to group")
    with torch.device("meta"):
        grouped = Network(table.model_copy(update={"blocks": rows}), model.num_classes)
    state = model.state_dict()
    for block, row, new_row in zip(wire(table).blocks, table.blocks, rows, strict=False):
        if new_row is not row:
            state = _stacked(state, block)
    grouped.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    lay_channels_innermost(grouped)
    return grouped.train(model.training)


def _stacked(state: dict[str, Tensor], block: WiredBlock) -> dict[str, Tensor]:
    """Replace the weights of a block's branches by those of its grouped convolutions."""
    prefix = f"blocks.{block.name}."
    nodes = block.graph.nodes
    per_branch = sum(not isinstance(node.layer, Add) for node in nodes) // 2
    result = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    for position in range(per_branch):
        if not isinstance(nodes[position].layer, Conv):
            continue
        first = f"{prefix}{position}."
        # The closing convolution stands after the shuffle, which the branches do not have.
        target = position + 1 if position == per_branch - 1 else position
        for name in [name for name in state if name.startswith(first)]:
            field = name.removeprefix(first)
            halves = [state[name], state[f"{prefix}{position + per_branch}.{field}"]]
            stacked = torch.cat(halves) if halves[0].dim() else halves[0]
            result[f"{prefix}{target}.{field}"] = stacked
    return result
