"""Label assignment of a job: which cells learn which boxes (paper section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from yolofleet.core.extension_points import ExtensionPoint, UnknownNameError
from yolofleet.specs.base import Spec


@dataclass(frozen=True, kw_only=True)
class RegisteredAssigner:
    """An assigner that a job can name."""

    function: str
    """Where it is, as ``module:function``; `yolofleet.losses.assigners` says what it takes and returns."""
    uses_auxiliary: bool = True
    """Whether it needs a model with auxiliary heads."""
    has_coarse_set: bool = False
    """Whether the auxiliary heads learn cells that the lead head does not, which a constraint can cap."""


ASSIGNERS: ExtensionPoint[RegisteredAssigner] = ExtensionPoint("assigner")
"""Every assigner by its name in a job; `yolofleet.losses.register_assigner` adds one."""
_BUILT_IN = {
    "none": RegisteredAssigner(function="yolofleet.losses.assigners:assign_lead_alone", uses_auxiliary=False),
    "independent": RegisteredAssigner(function="yolofleet.losses.assigners:assign_independent"),
    "lead": RegisteredAssigner(function="yolofleet.losses.assigners:assign_lead_guided"),
    "coarse_to_fine": RegisteredAssigner(
        function="yolofleet.losses.assigners:assign_coarse_to_fine", has_coarse_set=True
    ),
}
for _name, _assigner in _BUILT_IN.items():
    ASSIGNERS.register(_name)(_assigner)


def _check_registered(name: str) -> str:
    try:
        ASSIGNERS.get(name)
    except UnknownNameError:
        *others, last = map(repr, ASSIGNERS.names())
        expected = f"{', '.join(others)} or {last}"
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected}) from None
    return name


class AssignmentSpec(Spec):
    """Label assignment; left alone it is the published one of the model."""

    assigner: Annotated[str, AfterValidator(_check_registered)] | None = None
    """Who guides the auxiliary heads (Table 6); ``none`` trains the model without them. By default coarse_to_fine for
    models with auxiliary heads, none for the others."""
    matching: Literal["dynamic", "fixed"] = "dynamic"
    """dynamic: each box takes as many of its cheapest cells as fit it well (SimOTA); fixed: every candidate."""
    constraint: bool = False
    """Cap the objectness target of the cells that only the coarse set holds (Table 7)."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.25
    """Factor of every term of the auxiliary heads."""
    relaxation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How near to a neighbouring cell a box's centre must be for the coarse set, in cells; 0.5 is the fine set."""
