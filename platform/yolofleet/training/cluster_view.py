"""What Ray knows of its nodes, in the words of yolofleet.training.capacity; needs a connection to the cluster."""

from __future__ import annotations

from dataclasses import dataclass

from yolofleet.training.capacity import NodeOffer


@dataclass(frozen=True)
class NodeSeen:
    """A node that the cluster has or had.

    Attributes:
        name: Its address.
        offers: What it has, for people.
        alive: Whether it is there.
        end: Why it is not; empty while it is there.
    """

    name: str
    offers: str
    alive: bool
    end: str


def nodes_seen() -> dict[str, NodeSeen]:
    """Return every node that the cluster has or had, by Ray's id."""
    import ray

    return {
        str(node["NodeID"]): NodeSeen(
            name=str(node["NodeManagerAddress"]),
            offers=", ".join(f"{node['Resources'].get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")),
            alive=bool(node["Alive"]),
            end=" ".join(str(node.get("DeathReasonMessage", "")).split()),
        )
        for node in ray.nodes()
    }


def alive_offers() -> list[NodeOffer]:
    """Return the nodes that are there and stay."""
    import ray

    draining = draining_nodes()
    return [
        NodeOffer(node["Resources"], labels=node.get("Labels"), name=node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


def free_offers() -> list[NodeOffer]:
    """Return what nobody uses on each node that stays."""
    import ray

    free = free_resources()
    draining = draining_nodes()
    return [
        NodeOffer(free.get(node["NodeID"], {}), labels=node.get("Labels"), name=node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


def free_resources() -> dict[str, dict[str, float]]:
    """Return what nobody uses of each node's resources, by the node's id."""
    import ray

    return dict(ray._private.state.available_resources_per_node())


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are announced to go."""
    import ray

    return set(ray._private.state.state.get_draining_nodes() or {})


def growth_offers() -> list[NodeOffer]:
    """Return the groups of nodes that the cluster's autoscaler may start, each with its largest count; none without."""
    import ray

    config = ray._private.state.state.get_cluster_config()
    groups = [] if config is None else config.node_group_configs
    return [
        NodeOffer(dict(group.resources), count=group.max_count if group.max_count >= 0 else 10**6, name=group.name)
        for group in groups
    ]


def hosts() -> dict[str, str]:
    """Return a node's id for each host of the cluster."""
    import ray

    return {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
