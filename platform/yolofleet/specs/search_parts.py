"""The parts of a search spec: limits, objectives, algorithm, scheduler, budget and published results."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from yolofleet.core.errors import UserError
from yolofleet.core.extension_points import ExtensionPoint
from yolofleet.specs.base import ByteSize, Count, Spec

ALGORITHMS: ExtensionPoint[Any] = ExtensionPoint("search algorithm", home="yolofleet.search.searcher")
"""The search algorithms; `yolofleet.search.searcher` says what is registered."""
Figure = Literal[
    "gflops",
    "gflops_training",
    "parameters",
    "parameters_training",
    "activation_bytes",
    "training_bytes",
    "training_petaflops",
    "latency_milliseconds",
]
"""Figures of a candidate that are known before it trains."""

Size = Annotated[float, ByteSize]


class Limit(Spec):
    """The bounds of a figure; a candidate outside never gets a worker."""

    max: Size | None = None
    """The largest value that is allowed."""
    min: Size | None = None
    """The smallest value that is allowed."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.max is None and self.min is None:
            raise ValueError("a constraint needs max, min, or both")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Objective(Spec):
    """One objective."""

    metric: str
    """A metric of a trial (``val_AP``), or a figure that is known before training (``gflops``)."""
    goal: Literal["max", "min"]
    """Which way is better."""
    reference: float | None = None
    """Its coordinate of the reference point, for the hypervolume. Unless given, the limit on it, or the worst measured
    value."""

    @property
    def sign(self) -> float:
        """1 where more is better, else -1."""
        return 1.0 if self.goal == "max" else -1.0


def _registered(name: str) -> str:
    try:
        ALGORITHMS.get(name)
    except UserError as error:
        raise ValueError(str(error)) from None
    return name


class AlgorithmSpec(Spec):
    """How candidates are chosen."""

    name: Annotated[str, AfterValidator(_registered)] = "gaussian_process"
    """gaussian_process models measured objectives and computes the others; tpe, nsga2 and nsga3 are Optuna's."""
    startup_trials: Annotated[int, Field(ge=1, le=100_000)] = 8
    """Trials spread evenly over the space before the model is trusted (gaussian_process, tpe)."""
    population_size: Annotated[int, Field(ge=2, le=100_000)] = 20
    """Trials in a generation (nsga2, nsga3)."""


class SchedulerSpec(Spec):
    """How much is spent on each candidate."""

    name: Literal["none", "asha", "population"] = "none"
    """none: all train to the end; asha: the best of each rung train on; population: the worst copy the best."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """asha: one in this many trials is promoted from each rung."""
    rungs: Annotated[int, Field(ge=1, le=8)] = 2
    """asha: rungs before the end of training; population: exchanges before the end."""
    measure: Literal["share", "compute"] = "share"
    """asha: rungs at the same share of each trial's own training, or at the same compute spent."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """population: the share of trials that copies, and that is copied from."""
    factors: tuple[float, float] = (0.8, 1.25)
    """population: a copied number is multiplied by one of these."""


class BudgetSpec(Spec):
    """The budget of a search; the first limit that is used up ends it."""

    trials: Count | None = None
    """Trials that get a worker, repeats not counted."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of all workers together (CPU workers where a trial has no GPU)."""
    wall_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours from the start of the command."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.trials is None and self.gpu_hours is None and self.wall_hours is None:
            raise ValueError("a budget needs trials, gpu_hours or wall_hours")
        return self


class PaperRow(Spec):
    """A row of a published table: AP in percent, in all and by IoU threshold and size of the objects, and its cost."""

    label: str
    """Name of the row; where it is the name of a choice, the two are compared."""
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None
    parameters: float | None = None
    """In units of 10^6."""
    gflops: float | None = None
    """In units of 10^9."""


class PaperSpec(Spec):
    """Published results that a space reproduces."""

    table: str
    """Name of the table, as the report shows it."""
    note: str | None = None
    """What a reader of the comparison should know, such as what the paper leaves open."""
    rows: list[PaperRow]
    """The rows."""
