"""How many slots a group of workers has room for, as it has to be placed.

A strict placement and a first worker that needs a node of its own kind may leave fewer than the nodes have free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolofleet.training.supervision.nodes import NodeOffer

STRICT = ("STRICT_PACK", "STRICT_SPREAD")
"""Placements that Ray keeps or does not start the group at all."""


@dataclass(frozen=True)
class GroupRoom:
    """The slots that each offer has for one group."""

    counts: list[int]
    """For anything that needs what a worker needs."""
    firsts: list[int]
    """For the first worker."""
    together: list[int]
    """For all its workers, as they have to be placed."""

    def slots(self, beside: int = 0) -> int:
        """Return how many slots there are, up to so many beside the workers, which may be on any node."""
        return min(sum(self.counts), sum(self.together) + beside) if any(self.firsts) else 0


def group_room(
    offers: Sequence[NodeOffer],
    wanted: Mapping[str, float],
    labels: Mapping[str, str],
    first_labels: Mapping[str, str],
    placement: str,
) -> GroupRoom:
    """Return the room for one group.

    Args:
        offers: The nodes.
        wanted: What each worker needs.
        labels: Those of each worker's node.
        first_labels: Further ones of the first worker's node.
        placement: Ray's word for how the workers are placed.
    """
    counts = [offer.slots(wanted, labels) for offer in offers]
    firsts = [offer.slots(wanted, {**labels, **first_labels}) for offer in offers]
    if placement == "STRICT_SPREAD":
        each = [offer.count for offer in offers]
    elif placement == "STRICT_PACK":
        of_one = [
            count // offer.count if first else 0 for count, first, offer in zip(counts, firsts, offers, strict=True)
        ]
        best = max(range(len(of_one)), key=of_one.__getitem__, default=None)
        each = [number if index == best else 0 for index, number in enumerate(of_one)]
    else:
        return GroupRoom(counts, firsts, counts)
    together, able = ([*map(min, numbers, each)] for numbers in (counts, firsts))
    return GroupRoom(counts, able, together)
