"""Room that nobody uses any more: what a start of Ray Train's workers that failed half-way did not give back.

Ray Train returns a group's room when it stops the group, and a group whose start fails (its processes cannot find each
other, say) was never there to be stopped. Ray itself returns it when the driver ends; until then each further start
would wait for room that its forerunner holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

GONE = "REMOVED"


@dataclass(frozen=True)
class HeldGroup:
    """A placement group, as Ray knows it.

    Attributes:
        id: Its id, hexadecimal.
        job: Ray's id of the driver under which it was made.
        maker: Ray's id of the actor that made it; None for the driver itself, as Ray Tune does for its trials.
        maker_is_dead: Whether that actor is gone; of the driver's own groups Ray says so, too.
        state: Ray's word for how it stands.
    """

    id: str
    job: str
    maker: str | None
    maker_is_dead: bool
    state: str


def abandoned(groups: Iterable[HeldGroup], job: str) -> list[HeldGroup]:
    """Return those of a driver's groups that an actor made which is gone: nobody will use or return them."""
    made = (group for group in groups if group.job == job and group.maker is not None)
    return [group for group in made if group.maker_is_dead and group.state != GONE]


def return_abandoned() -> int:
    """Give the room of this driver's abandoned groups back; returns how many there were."""
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    found = abandoned(held_groups(), ray.get_runtime_context().get_job_id())
    for group in found:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group.id))))
    return len(found)


def holds_room() -> bool:
    """Return whether this driver has placement groups, whoever made them."""
    import ray

    job = ray.get_runtime_context().get_job_id()
    return any(group.job == job and group.state != GONE for group in held_groups())


def held_groups() -> list[HeldGroup]:
    """Return all placement groups that the cluster has or had lately."""
    import ray
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    # The public table leaves out who made a group.
    accessor = ray._private.state.state._connect_and_get_accessor()
    found = [PlacementGroupTableData.FromString(entry) for entry in accessor.get_placement_group_table()]
    return [
        HeldGroup(
            id=entry.placement_group_id.hex(),
            job=entry.creator_job_id.hex(),
            maker=None if maker.is_nil() else maker.hex(),
            maker_is_dead=bool(entry.creator_actor_dead),
            state=str(PlacementGroupTableData.PlacementGroupState.Name(entry.state)),
        )
        for entry in found
        for maker in (ray.ActorID(entry.creator_actor_id),)
    ]
