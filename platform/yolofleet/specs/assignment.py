"""How boxes find the cells that learn them (paper section 4.2): what a job says about it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from yolofleet.specs.base import Spec


class AssignmentSpec(Spec):
    """Label assignment; left alone it is the published one of the model."""

    assigner: Literal["none", "independent", "lead", "coarse_to_fine"] | None = None
    """Who guides the auxiliary heads (Table 6); ``none`` trains the model without them. By default coarse_to_fine for
    models with auxiliary heads, none for the others."""
    matching: Literal["dynamic", "fixed"] = "dynamic"
    """dynamic: as many cells a box as fit it well, the cheapest ones (SimOTA); fixed: every candidate."""
    constraint: bool = False
    """Cap the objectness target of the cells that only the coarse set holds (Table 7)."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.25
    """Factor of every term of the auxiliary heads."""
    relaxation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How near to a neighbouring cell a box's centre must be for the coarse set, in cells; 0.5 is the fine set."""
