"""The placement groups of a driver, and those of them that nothing else gives back.

Ray Train gives a group's resources back when it stops the group; but a group whose start fails half-way (its processes
cannot find each other, say) is never stopped. Ray itself would give them back when the driver ends; until then each
further start would wait for them. So placement groups whose maker is dead are removed here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from yolofleet.specs.cluster import ClusterSpec
from yolofleet.training.supervision.nodes import free_offers, room_for

SETTLE_SECONDS = 15.0
"""How long a group may take to give its resources back."""
REMOVED = "REMOVED"
"""Ray's state of a placement group that is gone."""


@dataclass(frozen=True)
class PlacementGroupRecord:
    """A placement group, as Ray lists it."""

    id: str
    """Its id, hexadecimal."""
    job: str
    """Ray's id of the driver under which it was made."""
    maker: str | None
    """Ray's id of the actor that made it; None for the driver itself, as Ray Tune does for its trials."""
    maker_is_dead: bool
    """Whether that actor is gone; Ray says so of the driver's own groups, too."""
    state: str
    """Ray's word for its state."""
    placed: tuple[tuple[str, dict[str, float]], ...] = ()
    """Ray's id of the node and the resources of each bundle that has a node."""


def orphaned_groups(groups: Iterable[PlacementGroupRecord], job: str) -> list[PlacementGroupRecord]:
    """Return those of a driver's groups that were made by an actor that is gone: nothing else will remove them."""
    made = (group for group in groups if group.job == job and group.maker is not None)
    return [group for group in made if group.maker_is_dead and group.state != REMOVED]


def remove_orphaned_groups() -> None:
    """Give back the resources of this driver's orphaned placement groups."""
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group in orphaned_groups(list_placement_groups(), ray.get_runtime_context().get_job_id()):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group.id))))


def holds_placement_groups() -> bool:
    """Return whether this driver has placement groups, whoever made them."""
    import ray

    job = ray.get_runtime_context().get_job_id()
    return any(group.job == job and group.state != REMOVED for group in list_placement_groups())


def returns_room(cluster: ClusterSpec, num_workers: int) -> bool:
    """Return whether a group of so many workers has room once this driver's ended ones have given back theirs."""
    end = time.monotonic() + SETTLE_SECONDS
    while room_for(cluster, free_offers()).slots() < num_workers:
        remove_orphaned_groups()
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def list_placement_groups() -> list[PlacementGroupRecord]:
    """Return all placement groups that the cluster has or had lately."""
    import ray
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    # The public table leaves out who made a group.
    accessor = ray._private.state.state._connect_and_get_accessor()
    entries = [PlacementGroupTableData.FromString(entry) for entry in accessor.get_placement_group_table()]
    return [
        PlacementGroupRecord(
            id=entry.placement_group_id.hex(),
            job=entry.creator_job_id.hex(),
            maker=None if maker.is_nil() else maker.hex(),
            maker_is_dead=bool(entry.creator_actor_dead),
            state=str(PlacementGroupTableData.PlacementGroupState.Name(entry.state)),
            placed=tuple(
                (bundle.node_id.hex(), dict(bundle.unit_resources)) for bundle in entry.bundles if bundle.node_id
            ),
        )
        for entry in entries
        for maker in (ray.ActorID(entry.creator_actor_id),)
    ]
