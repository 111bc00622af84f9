"""Whether weights are those of a model: what fits of them, what does not, and which model of the zoo they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.models.network import Network, convolution_shapes
from yolofleet.models.official_names import (
    has_permissive_layout,
    holds_own_names,
    in_published_names,
    official_parameter_names,
)
from yolofleet.models.weight_differences import compare_weights
from yolofleet.models.zoo import zoo_names, zoo_table
from yolofleet.specs.blocks import PYRAMID, SppcspcRow
from yolofleet.specs.model import ModelTable

COUNTERS = "num_batches_tracked"
TRAINING_ONLY = ("blocks.auxiliary_", "head.add.")
LAST_LAYER = ("head.lead.", "head.auxiliary.", "head.multiply.")
ANCHORS = ("anchors", "anchor_grid")


def in_our_names(model: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by our names; of published ones those that the model has.

    Raises:
        UserError: The names are published ones, and the model's blocks have none.
    """
    if holds_own_names(state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    published = in_published_names(state)
    names = official_parameter_names(model, deploy_layout=is_deploy_layout(published))
    ours = {names[name]: tensor for name, tensor in published.items() if name in names}
    return {"anchors": model.anchors, **ours}


def is_deploy_layout(published: Mapping[str, Tensor]) -> bool:
    """Return whether published weights lack implicit knowledge and auxiliary heads."""
    return not any(".ia." in name or ".m2." in name for name in published)


def fitting_names(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of a model's tensors that weights have in the same shape."""
    return {name for name in target if name in state and state[name].shape == target[name].shape}


def needed_names(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of a model's tensors without which weights are another model's."""
    absent = tuple(part for part in TRAINING_ONLY if not any(name.startswith(part) for name in state))
    # Batch norm's counters decide nothing; a state dict may lack them.
    optional = (*absent, *LAST_LAYER)
    return {name for name in target if not name.startswith(optional) and not name.endswith(COUNTERS)}


def fitting_models(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the zoo's models that weights are of, whatever their classes."""
    found = Counter(tuple(tensor.shape) for tensor in state.values())
    tables = [zoo_table(name) for name in zoo_names()]
    return tuple(table.name for table in tables if _has_convolutions(table, found) and _is_of(_shapes(table), state))


def _has_convolutions(table: ModelTable, found: Counter[tuple[int, ...]]) -> bool:
    """Return whether weights have as many convolutions of each shape as a model, which needs no modules to know."""
    return Counter(shape.shape for shape in convolution_shapes(table, deployed=True).values()) <= found


def _shapes(table: ModelTable) -> Network:
    """Return a model without memory for its weights."""
    with torch.device("meta"):
        return Network(table, num_classes=1)


def check_architecture(table: ModelTable, state: Mapping[str, Tensor]) -> None:
    """Raise `UserError` for weights of another model, whatever their classes; it names the model that fits."""
    model = _shapes(table)
    if not _is_of(model, state):
        raise UserError(explain_misfit(model, state))


def _is_of(model: Network, state: Mapping[str, Tensor]) -> bool:
    try:
        ours = in_our_names(model, state)
    except UserError:  # weights of this model are published under no numbers
        return False
    target = model.state_dict()
    given = in_published_names(state)
    num_given = sum(part.rpartition(".")[2] not in ANCHORS for part in given)
    num_known = sum(part in target and part != "anchors" for part in ours)
    return num_given == num_known and needed_names(target, ours) <= fitting_names(target, ours)


def whose_weights(table: ModelTable, state: Mapping[str, Tensor], differences: object) -> str:
    """Return what to choose for weights that are not a model's: the model that fits, else what differs."""
    match fitting_models(state):
        case ():
            return f"these are not weights of {table.name}: {differences}; choose the model that they belong to"
        case (name,):
            return f"these are not weights of {table.name} but of {name}: choose that model"
        case names:
            return f"these are not weights of {table.name}; they fit {' and '.join(names)}: choose one of these models"


def layout_note(table: ModelTable, state: Mapping[str, Tensor]) -> str | None:
    """Return what to know where weights fit a model that computes something else than their own implementation."""
    has_paper_pools = any(isinstance(row, SppcspcRow) and row.pools == PYRAMID for row in table.blocks)
    if not (has_permissive_layout(state) and has_paper_pools):
        return None
    return (
        f"the weights are named as in MultimediaTechLab/YOLO, whose graph differs from that of {table.name} twice; "
        "the model yolov7-mit computes what that implementation does: compare their AP (docs/weights.md)"
    )


def explain_misfit(model: Network, state: Mapping[str, Tensor]) -> str:
    """Say why weights cannot be taken over: folded for deployment, of other widths, or of another model."""
    target = model.state_dict()
    try:
        ours = in_our_names(model, state)
    except UserError as error:
        return whose_weights(model.table, state, error)
    needed = needed_names(target, ours)
    optional = target.keys() - needed
    differences = compare_weights(
        {name: target[name] for name in target if name in needed},
        {name: ours[name] for name in ours if name not in optional and not name.startswith(LAST_LAYER)},
    )
    is_folded = not any(name.endswith("norm.weight") for name in ours)
    if differences.missing and is_folded and any(name.endswith("conv.bias") for name in differences.left_over):
        return (
            "these are weights of a deployed model, whose batch norm is folded into the convolutions and cannot be "
            "trained further; use its training form (training.safetensors of the detector package)"
        )
    if not differences.missing and not fitting_models(state):
        return f"these are not weights of {model.table.name}: {differences}; use the same scaling factors"
    return whose_weights(model.table, state, differences)
