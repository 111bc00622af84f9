"""Differences between a state dict and the model that it should fit: what is missing, left over, of another shape.

Every reader of weights (checkpoint, detector package, published file) refuses what does not fit, in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn

from yolofleet.core.errors import UserError

MOST_NAMED = 5


class Shape(NamedTuple):
    """What a tensor of weights should be."""

    shape: tuple[int, ...]


class Shaped(Protocol):
    """A tensor, or the description of one."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sizes."""


@dataclass(frozen=True, slots=True)
class WeightDifferences:
    """Names of the tensors that do not fit; false where all fit, and a text that names the first of each kind."""

    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    misshapen: Mapping[str, str]
    """Name -> both shapes, as a text."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.left_over or self.misshapen)

    def __str__(self) -> str:
        shapes = [f"{name}: {shapes}" for name, shapes in self.misshapen.items()]
        kinds = {"missing": self.missing, "left over": self.left_over, "of another shape": shapes}
        return ", ".join(f"{count_names(names)} {kind}" for kind, names in kinds.items() if names)


def compare_weights(expected: Mapping[str, Shaped], state: Mapping[str, Shaped]) -> WeightDifferences:
    """Compare a state dict with the tensors that a model expects."""
    return WeightDifferences(
        missing=tuple(name for name in expected if name not in state),
        left_over=tuple(name for name in state if name not in expected),
        misshapen={
            name: f"{tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and tuple(state[name].shape) != tuple(tensor.shape)
        },
    )


@torch.no_grad()
def load_strictly(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a state that must fit the model in every name and shape (batch norm's pass counters are not in it).

    Raises:
        UserError: It does not fit; names what is missing, what is left over, and the first 5 of each.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    if differences := compare_weights(own, tensors):
        raise UserError(f"the checkpoint does not fit the job's model: {differences}")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def count_names(names: Sequence[str]) -> str:
    """Return "7 (a, b, c, d, e, ...)", or "none"."""
    more = ", ..." if len(names) > MOST_NAMED else ""
    return f"{len(names)} ({', '.join(names[:MOST_NAMED])}{more})" if names else "none"
