"""Weights from elsewhere: published state dicts, and weights of a model with other classes.

Loading is all or nothing: weights that do not fit are refused before the model changes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.models.checkpoint_reader import read_checkpoint
from yolofleet.models.network import BOX_AND_OBJECTNESS, Network
from yolofleet.models.official_names import head_prefix, official_parameter_names
from yolofleet.models.weight_differences import compare_weights, count_names
from yolofleet.specs.model import ModelTable

__all__ = [
    "LoadedWeights",
    "WeightsError",
    "load_official_state_dict",
    "official_num_classes",
    "official_parameter_names",
    "read_checkpoint",
    "transfer_state_dict",
]

COUNTERS = "num_batches_tracked"
TRAINING_ONLY = ("blocks.auxiliary_", "head.add.")
LAST_LAYER = ("head.lead.", "head.auxiliary.", "head.multiply.")


class WeightsError(UserError):
    """Weights that do not belong to the model: what is missing, what is left over, which shapes differ."""


@dataclass(frozen=True)
class LoadedWeights:
    """Which tensors of a model were loaded from a state dict."""

    loaded: tuple[str, ...]
    """Our names of the tensors taken over."""
    kept: tuple[str, ...]
    """Our names of the tensors that the state dict says nothing about: left as they were, or made neutral."""


def load_official_state_dict(model: Network, state: Mapping[str, Tensor]) -> LoadedWeights:
    """Load a published state dict (``model.N....`` names) into a model; all or nothing.

    Both published layouts are understood: the training one, and the deployment one without implicit knowledge and
    auxiliary heads. There, implicit knowledge is made neutral (add 0, multiply by 1), which computes the same, and
    auxiliary heads keep their fresh weights. Anchors are taken over where the state dict has them.

    Args:
        model: A fresh model of the same kind and number of classes.
        state: Published name -> tensor, of any float precision.

    Returns:
        Which tensors were loaded and which were not in the state dict.

    Raises:
        WeightsError: The state dict is another model's, or of another number of classes.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    deploy_layout = _is_deploy_layout(state)
    prefix = head_prefix(model, deploy_layout=deploy_layout)
    names = _without_absent_counters(official_parameter_names(model, deploy_layout=deploy_layout), state)
    target = model.state_dict()
    _check_fit(model, {official: target[ours] for official, ours in names.items()}, state, prefix)
    with torch.no_grad():
        for official, ours in names.items():
            if official in state:
                target[ours].copy_(state[official])
        loaded = {ours for official, ours in names.items() if official in state}
        _make_implicit_neutral(model, loaded)
    if _take_anchors(model, state, prefix):
        loaded.add("anchors")
    return LoadedWeights(tuple(sorted(loaded)), tuple(sorted(set(target) - loaded)))


def _is_deploy_layout(state: Mapping[str, Tensor]) -> bool:
    return not any(".ia." in name or ".m2." in name for name in state)


def official_num_classes(table: ModelTable, state: Mapping[str, Tensor]) -> int:
    """Return the number of classes that published weights predict: what to build the model with.

    Args:
        table: The model that they belong to.
        state: Published name -> tensor.

    Raises:
        WeightsError: There is no prediction layer among the names.
    """
    for name, tensor in state.items():
        if re.fullmatch(r"(module\.)?model\.\d+\.m\.0\.weight", name):
            return tensor.shape[0] // table.num_anchors - BOX_AND_OBJECTNESS
    raise WeightsError(
        f"these are not published weights: none of {count_names(list(state))} is a prediction layer "
        "(model.N.m.0.weight)"
    )


def transfer_state_dict(model: Network, state: Mapping[str, Tensor]) -> LoadedWeights:
    """Take over every weight whose name and shape fit, e.g. to fine-tune on other classes.

    With another number of classes that is everything but the last layer (the prediction convolutions and the implicit
    multiplication of each level), which keeps its fresh weights. So do auxiliary heads and implicit addition where the
    state dict is of a deployed graph, which has none.

    Args:
        model: The model to start.
        state: Our names or published ones -> tensor.

    Raises:
        WeightsError: Nothing but the last layer may differ; anything else that does not fit is another model's.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if any(name.startswith("model.") for name in state):
        state = _in_our_names(model, state)
    target = model.state_dict()
    fitting = {name for name in target if name in state and state[name].shape == target[name].shape}
    absent = tuple(part for part in TRAINING_ONLY if not any(name.startswith(part) for name in state))
    # Batch norm's counters decide nothing; a state dict may lack them.
    optional = (*absent, *LAST_LAYER)
    needed = {name for name in target if not name.startswith(optional) and not name.endswith(COUNTERS)}
    if needed - fitting:
        raise WeightsError(_explain_misfit(model, {name: target[name] for name in target if name in needed}, state))
    with torch.no_grad():
        for name in fitting:
            target[name].copy_(state[name])
    return LoadedWeights(tuple(sorted(fitting)), tuple(sorted(set(target) - fitting)))


def _explain_misfit(model: Network, needed: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Say why weights cannot be taken over: folded for deployment, of other widths, or of another model."""
    others = model.state_dict().keys() - needed.keys()
    differences = compare_weights(
        needed, {name: state[name] for name in state if name not in others and not name.startswith(LAST_LAYER)}
    )
    is_folded = not any(name.endswith("norm.weight") for name in state)
    if differences.missing and is_folded and any(name.endswith("conv.bias") for name in differences.left_over):
        return (
            "these are weights of a deployed model, whose batch norm is folded into the convolutions and cannot be "
            "trained further; use its training form (training.safetensors of the detector package)"
        )
    cure = "use the same scaling factors" if not differences.missing else "choose the model that they belong to"
    return f"these are not weights of {model.table.name}: {differences}; {cure}"


def _in_our_names(model: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = official_parameter_names(model, deploy_layout=_is_deploy_layout(state))
    ours = {names[name]: tensor for name, tensor in state.items() if name in names}
    return {"anchors": model.anchors, **ours}


def _without_absent_counters(names: dict[str, str], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Leave out the names of batch norm's counters where the state dict has none: they decide nothing."""
    if any(name.endswith(COUNTERS) for name in state):
        return names
    return {official: ours for official, ours in names.items() if not official.endswith(COUNTERS)}


def _check_fit(model: Network, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], prefix: str) -> None:
    ignored = (f"{prefix}.anchors", f"{prefix}.anchor_grid")
    differences = compare_weights(expected, {name: state[name] for name in state if name not in ignored})
    if not differences:
        return
    named = differences.missing or differences.left_over
    if not named and all(name.startswith(prefix) for name in differences.misshapen):
        num_classes = official_num_classes(model.table, state)
        raise WeightsError(
            f"these weights of {model.table.name} predict {num_classes} classes, the model {model.num_classes}; "
            f"build it with num_classes={num_classes}, or take over all but the last layer with "
            "yolofleet.models.weights.transfer_state_dict(model, state)"
        )
    raise WeightsError(
        f"these are not weights of {model.table.name}: {differences}; choose the model that they belong to"
    )


def _make_implicit_neutral(model: Network, loaded: set[str]) -> None:
    for name, neutral in (("add", 0.0), ("multiply", 1.0)):
        for level, module in enumerate(getattr(model.head, name)):
            if f"head.{name}.{level}.value" not in loaded:
                module.value.fill_(neutral)


def _take_anchors(model: Network, state: Mapping[str, Tensor], prefix: str) -> bool:
    """Take over the published anchors, kept in cells (``anchors``) or in pixels (``anchor_grid``)."""
    if f"{prefix}.anchor_grid" in state:
        anchors = state[f"{prefix}.anchor_grid"].float()
    elif f"{prefix}.anchors" in state:
        anchors = state[f"{prefix}.anchors"].float()
        anchors = anchors * torch.tensor(model.strides).view(-1, *[1] * (anchors.dim() - 1))
    else:
        return False
    if anchors.numel() != model.anchors.numel() or not bool((anchors > 0).all()):
        warnings.warn(f"{prefix}: its anchors are not usable; those of the table stay", stacklevel=3)
        return False
    model.anchors.copy_(anchors.view_as(model.anchors))
    rows = tuple(tuple(level.flatten().tolist()) for level in model.anchors)
    model.table = model.table.model_copy(update={"anchors": rows})
    return True
