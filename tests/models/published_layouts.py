"""State dicts of our models in both published layouts."""

from __future__ import annotations

from torch import Tensor

from yolofleet.models.network import Network
from yolofleet.models.official_names import HEAD_PARTS, INSIDE_PERMISSIVE, official_parameter_names


def published(model: Network, *, deploy_layout: bool = False) -> dict[str, Tensor]:
    """The state dict of a model under the published names."""
    state = model.state_dict()
    names = official_parameter_names(model, deploy_layout=deploy_layout)
    return {official: state[ours].clone() for official, ours in names.items()}


def permissive(model: Network, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of a model in the permissively licensed layout."""
    inside = {official: theirs for theirs, official in INSIDE_PERMISSIVE.items()}
    parts = {official: theirs for theirs, official in HEAD_PARTS.items()}
    state = {}
    for name, tensor in published(model).items():
        _, number, *inner = name.split(".")
        rest = ".".join(inner)
        if inner[0] in parts:
            rest = ".".join(["heads", inner[1], parts[inner[0]], *inner[2:]])
        else:
            for official, theirs in inside.items():
                rest = theirs + rest.removeprefix(official) if rest.startswith(official) else rest
        state[f"{prefix}{number}.{rest}"] = tensor
    return state
