"""The early end of a run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from yolofleet.specs.base import Count, Spec


class StopSpec(Spec):
    """When a run ends before its last epoch; its best checkpoint so far is released."""

    patience: Count | None = None
    """Evaluations in a row whose metric is no better than the best before them, after which the run ends."""
    min_delta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """By how much a metric must be above the best before it to be better."""
    metric: Literal["AP", "AP50", "AP75"] = "AP"
    """The metric of the validation set that is compared. What is released is the best AP, whichever it is."""
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of training, of all starts together, after which the run ends with the next step."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.patience is None and self.max_hours is None:
            raise ValueError(
                "stop ends no run without patience (in evaluations) or max_hours; set one, or leave it out"
            )
        return self
