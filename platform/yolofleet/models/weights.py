"""Weights from elsewhere: published state dicts, and weights of a model with other classes.

Loading is all or nothing: weights that do not fit are refused before the model changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.models.checkpoint_reader import read_checkpoint
from yolofleet.models.network import BOX_AND_OBJECTNESS, Network
from yolofleet.models.official_names import head_prefix, in_published_names, official_parameter_names
from yolofleet.models.weight_differences import compare_weights, count_names
from yolofleet.models.weight_fit import (
    COUNTERS,
    LAST_LAYER,
    explain_misfit,
    fitting_names,
    in_our_names,
    is_deploy_layout,
    needed_names,
    whose_weights,
)
from yolofleet.specs.model import ModelTable

__all__ = [
    "LoadedWeights",
    "WeightsError",
    "load_official_state_dict",
    "match_classes",
    "official_num_classes",
    "official_parameter_names",
    "read_checkpoint",
    "take_known_rows",
    "transfer_state_dict",
]

UNKNOWN = -1
"""Stands for a class that the weights do not know."""


class WeightsError(UserError):
    """Weights that do not belong to the model: what is missing, what is left over, which shapes differ."""


@dataclass(frozen=True)
class LoadedWeights:
    """Which tensors of a model were loaded from a state dict."""

    loaded: tuple[str, ...]
    """Our names of the tensors taken over."""
    kept: tuple[str, ...]
    """Our names of the tensors that the state dict says nothing about: left as they were, or made neutral."""
    known_rows: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """The tensors of the last layer of which only the rows of known classes were loaded, as the state dict has them."""


def load_official_state_dict(model: Network, state: Mapping[str, Tensor]) -> LoadedWeights:
    """Load a published state dict (numbered layers, whatever their prefix) into a model; all or nothing.

    Both forms are understood: the training one, and the deployment one without implicit knowledge and auxiliary heads.
    There, implicit knowledge is made neutral (add 0, multiply by 1), which computes the same, and
    auxiliary heads keep their fresh weights. Anchors are taken over where the state dict has them.

    Args:
        model: A fresh model of the same kind and number of classes.
        state: Published name -> tensor, of any float precision.

    Returns:
        Which tensors were loaded and which were not in the state dict.

    Raises:
        WeightsError: The state dict is another model's, or of another number of classes.
    """
    state = in_published_names(state)
    deploy_layout = is_deploy_layout(state)
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


def official_num_classes(table: ModelTable, state: Mapping[str, Tensor]) -> int:
    """Return the number of classes that published weights predict: what to build the model with.

    Args:
        table: The model that they belong to.
        state: Published name -> tensor.

    Raises:
        WeightsError: There is no prediction layer among the names.
    """
    for name, tensor in in_published_names(state).items():
        if name.startswith("model.") and name.endswith(".m.0.weight") and tensor.dim() == 4:
            return tensor.shape[0] // table.num_anchors - BOX_AND_OBJECTNESS
    raise WeightsError(
        f"these are not published weights: none of {count_names(list(state))} is a prediction layer "
        "(model.N.m.0.weight or N.heads.0.head_conv.weight)"
    )


def match_classes(names: Sequence[str], known: Sequence[str]) -> tuple[int, ...]:
    """Return for each class of a model the index of the class of that name that weights know, else ``UNKNOWN``.

    Capitals, and what stands between words, do not count: "Traffic_Light" is "traffic light".
    """
    index: dict[str, int] = {}
    for number, name in enumerate(known):
        index.setdefault(_spelling(name), number)
    return tuple(index.get(_spelling(name), UNKNOWN) for name in names)


def _spelling(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def transfer_state_dict(
    model: Network, state: Mapping[str, Tensor], known_classes: Sequence[int] | None = None
) -> LoadedWeights:
    """Take over every weight whose name and shape fit, e.g. to fine-tune on other classes.

    The last layer (the prediction convolutions and the implicit multiplication of each level) is taken whole where the
    number of classes is the same and nothing is known of their names. Where the names are known, it keeps the rows of
    the classes that both have, and with them those of box and objectness; where they share none, its fresh weights. So
    do auxiliary heads and implicit addition where the state dict is of a deployed graph, which has none.

    Args:
        model: The model to start.
        state: Our names or published ones -> tensor.
        known_classes: What `match_classes` says of the model's classes; None where the weights name none.

    Raises:
        WeightsError: Nothing but the last layer may differ; anything else that does not fit is another model's.
    """
    ours, target = in_our_names(model, state), model.state_dict()
    fitting = fitting_names(target, ours)
    if not needed_names(target, ours) <= fitting:
        raise WeightsError(explain_misfit(model, state))
    rows: dict[str, Tensor] = {}
    if known_classes is not None:
        last = {name for name in target if name.startswith(LAST_LAYER)}
        fitting -= last
        if any(index != UNKNOWN for index in known_classes):
            rows = {name: ours[name] for name in sorted(last & ours.keys())}
            for name, tensor in rows.items():
                _check_rows(name, target[name], tensor, known_classes, model.table.num_anchors)
    with torch.no_grad():
        for name in fitting:
            target[name].copy_(ours[name])
        for name, tensor in rows.items():
            take_known_rows(target[name], tensor, known_classes or (), model.table.num_anchors)
    return LoadedWeights(tuple(sorted(fitting)), tuple(sorted(set(target) - fitting - rows.keys())), rows)


def take_known_rows(target: Tensor, source: Tensor, known_classes: Sequence[int], num_anchors: int) -> None:
    """Copy the rows of box, objectness and known classes of a tensor of the last layer; the others stay.

    Args:
        target: (anchors x (5 + classes), ...) of the model, or with a 1 before that; is written.
        source: The same of the weights, of any number of classes.
        known_classes: For each class of the model the one of the weights, or ``UNKNOWN``.
        num_anchors: Anchors of a level.
    """
    own = target.view(num_anchors, -1, _row_length(target))
    theirs = source.reshape(num_anchors, -1, _row_length(source)).to(own)
    own[:, :BOX_AND_OBJECTNESS] = theirs[:, :BOX_AND_OBJECTNESS]
    for new, old in enumerate(known_classes):
        if old != UNKNOWN:
            own[:, BOX_AND_OBJECTNESS + new] = theirs[:, BOX_AND_OBJECTNESS + old]


def _check_rows(name: str, target: Tensor, source: Tensor, known_classes: Sequence[int], num_anchors: int) -> None:
    length = _row_length(target)
    least = num_anchors * (BOX_AND_OBJECTNESS + max(known_classes) + 1) * length
    if _row_length(source) != length or source.numel() % (num_anchors * length) or source.numel() < least:
        raise WeightsError(f"{name} has the shape {tuple(source.shape)}, which does not fit {tuple(target.shape)}")


def _row_length(tensor: Tensor) -> int:
    """Return the numbers of a prediction: the input channels of a convolution, 1 of a bias or an implicit factor."""
    return tensor.shape[1] if tensor.dim() == 4 and tensor.shape[0] > 1 else 1


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
            f"these weights of {model.table.name} predict {plural(num_classes, 'class')}, the model "
            f"{model.num_classes}; build it with num_classes={num_classes}, or take over all but the last layer with "
            "yolofleet.models.weights.transfer_state_dict(model, state)"
        )
    raise WeightsError(whose_weights(model.table, state, differences))


def _make_implicit_neutral(model: Network, loaded: set[str]) -> None:
    for name, neutral in (("add", 0.0), ("multiply", 1.0)):
        for level, module in enumerate(getattr(model.head, name)):
            if f"head.{name}.{level}.value" not in loaded:
                module.value.fill_(neutral)


def _take_anchors(model: Network, state: Mapping[str, Tensor], prefix: str) -> bool:
    """Take over the published anchors, kept in cells (``anchors``) or in pixels (``anchor_grid``)."""
    in_pixels = f"{prefix}.anchor_grid" in state
    name = f"{prefix}.anchor_grid" if in_pixels else f"{prefix}.anchors"
    if name not in state:
        return False
    anchors = state[name].float()
    fits = anchors.shape[:1] == model.anchors.shape[:1] and anchors.numel() == model.anchors.numel()
    if not fits or not bool(((anchors > 0) & anchors.isfinite()).all()):
        warnings.warn(f"{prefix}: its anchors are not usable; those of the table stay", stacklevel=3)
        return False
    if not in_pixels:
        anchors = anchors * torch.tensor(model.strides).view(-1, *[1] * (anchors.dim() - 1))
    model.anchors.copy_(anchors.view_as(model.anchors))
    rows = tuple(tuple(level.flatten().tolist()) for level in model.anchors)
    model.table = model.table.model_copy(update={"anchors": rows})
    return True
