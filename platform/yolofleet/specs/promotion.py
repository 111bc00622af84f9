"""The policy of promotions: the gates that a new champion must pass before an alias points to it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from yolofleet.specs.base import Spec
from yolofleet.specs.tracking import NotifySpec

FigureName = Literal[
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
]  # fmt: skip
Share = Annotated[float, Field(ge=0, le=1)]
ClaimName = Annotated[str, Field(min_length=1)]


class AgainstChampion(Spec):
    """The new version must not be worse than the one that the alias points to, on the same images."""

    figure: FigureName = "AP"
    """Which of the twelve COCO figures decides."""
    largest_drop: Share = 0.01
    """How much lower it may be. The lower end of the confidence interval of the difference must be above this."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the interval, which is a paired bootstrap over images."""
    replicates: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """How often the images are drawn anew."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides which images the replicates draw."""


class ClassFloors(Spec):
    """The AP that classes must reach, whatever the champion does."""

    every: Share | None = None
    """Each class that has objects in the validation set."""
    classes: dict[str, Share] = Field(default_factory=dict)
    """By class name; takes precedence over `every`."""


class LatencyCeiling(Spec):
    """How long one image may take on the machine that promotes."""

    milliseconds: Annotated[float, Field(gt=0)]
    """Median for a square image of the version's own input size."""


class ProofGate(Spec):
    """The proof must hold when it is redone."""

    may_be_impossible: tuple[ClaimName, ...] = ("code version", "package versions")
    """Claims that may end as not possible. No claim may fail."""


class PromotionPolicy(Spec):
    """The gates of a promotion. A gate that is null is not checked."""

    proof: ProofGate | None = ProofGate()
    lineage: bool = True
    """Whether the training data must be known, down to the digests of the shards."""
    against_champion: AgainstChampion | None = AgainstChampion()
    class_floors: ClassFloors | None = None
    latency: LatencyCeiling | None = None
    notify: NotifySpec | None = None
    """Who is notified of a new version at the alias."""
