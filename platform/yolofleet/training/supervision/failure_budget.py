"""How many failures a run survives: one budget for each kind, none endless, all new whenever the run got further."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from yolofleet.specs.cluster import ClusterSpec

Kind = Literal["worker", "preemption", "start"]
"""``worker``: one died or hung; ``preemption``: a node was announced to go; ``start``: the workers never trained."""

SETTINGS: dict[Kind, str] = {
    "worker": "cluster.max_failures",
    "preemption": "cluster.max_preemptions",
    "start": "cluster.max_start_failures",
}


@dataclass
class FailureBudget:
    """Counts failures since the newest checkpoint.

    A run can only go on for ever by getting further for ever, and it has an end: so does every budget that is renewed
    by a checkpoint.

    Attributes:
        limits: Failures of each kind that are survived in a row without a checkpoint between them.
        checkpoint_step: The newest checkpoint that is known.
        counts: Failures since then.
        totals: Failures since the driver started.
    """

    limits: dict[Kind, int]
    checkpoint_step: int = 0
    counts: Counter[Kind] = field(default_factory=Counter)
    totals: Counter[Kind] = field(default_factory=Counter)

    @classmethod
    def of(cls, cluster: ClusterSpec, checkpoint_step: int) -> FailureBudget:
        """Return the budget that a job asks for."""
        limits: dict[Kind, int] = {
            "worker": cluster.max_failures,
            "preemption": cluster.max_preemptions,
            "start": cluster.max_start_failures,
        }
        return cls(limits, checkpoint_step)

    def charge(self, kind: Kind, checkpoint_step: int) -> bool:
        """Count a failure, and return whether the run may start again.

        Args:
            kind: What failed.
            checkpoint_step: The newest checkpoint now.
        """
        if checkpoint_step > self.checkpoint_step:
            self.checkpoint_step = checkpoint_step
            self.counts.clear()
        self.counts[kind] += 1
        self.totals[kind] += 1
        return self.counts[kind] <= self.limits[kind]

    def spent(self, kind: Kind) -> str:
        """Return the sentence that tells why the run ends."""
        return (
            f"{self.counts[kind]} failures ({kind}) without a checkpoint since step {self.checkpoint_step}, more than "
            f"{SETTINGS[kind]} = {self.limits[kind]}"
        )
