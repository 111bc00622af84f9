"""What a cluster can give: how many workers find room, now or once it has grown as far as it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from yolofleet.errors import UserError
from yolofleet.specs.cluster import ClusterSpec


@dataclass(frozen=True)
class NodeOffer:
    """Resources of one node, or of each node of a group that an autoscaler may start.

    Attributes:
        resources: Amounts by kind, as Ray counts them.
        count: Nodes like this.
        labels: Ray's labels of the node.
        name: What to call it in a message.
    """

    resources: Mapping[str, float]
    count: int = 1
    labels: Mapping[str, str] | None = None
    name: str = "node"

    def places(self, wanted: Mapping[str, float], labels: Mapping[str, str]) -> int:
        """Return how many workers find room: resources of two nodes do not add up to one worker."""
        if self.labels is not None and any(self.labels.get(key) != value for key, value in labels.items()):
            return 0
        counts = [int(self.resources.get(kind, 0.0) / amount + 1e-9) for kind, amount in wanted.items() if amount > 0]
        return self.count * min(counts)

    def described(self) -> str:
        """Return what it offers, for a message."""
        amounts = ", ".join(f"{self.resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        return f"{self.name}: {amounts}" if self.count == 1 else f"{self.count} x {self.name}: {amounts}"


def wanted_resources(cluster: ClusterSpec) -> dict[str, float]:
    """Return what one worker needs."""
    wanted = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    return {kind: amount for kind, amount in wanted.items() if amount > 0}


def num_places(cluster: ClusterSpec, offers: Sequence[NodeOffer]) -> int:
    """Return how many of the job's workers find room in the offers."""
    wanted = wanted_resources(cluster)
    return sum(offer.places(wanted, cluster.labels) for offer in offers)


def evaluates_apart(cluster: ClusterSpec, offers: Sequence[NodeOffer]) -> bool:
    """Return whether evaluation gets a place of its own; on one node it would only take from the workers."""
    if cluster.evaluation == "auto":
        return len(offers) > 1 and num_places(cluster, offers) > cluster.most_workers
    return cluster.evaluation == "apart"


def has_room(cluster: ClusterSpec, nodes: Sequence[NodeOffer], may_grow: Sequence[NodeOffer] = ()) -> bool:
    """Return whether the fewest workers, and the evaluation beside them, find room now.

    Args:
        cluster: What the job asks for.
        nodes: The nodes that are there.
        may_grow: The nodes that an autoscaler may have running at most, each group with its largest count.

    Raises:
        UserError: They never can; says what is there and what is missing.
    """
    if num_places(cluster, nodes) >= cluster.fewest_places:
        return True
    if num_places(cluster, may_grow) >= cluster.fewest_places:
        return False
    raise UserError(shortage(cluster, nodes, may_grow))


def shortage(cluster: ClusterSpec, nodes: Sequence[NodeOffer], may_grow: Sequence[NodeOffer] = ()) -> str:
    """Return what is asked for, what is there, and the cure."""
    wanted = wanted_resources(cluster)
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in wanted.items())
    labelled = f" on nodes labelled {dict(cluster.labels)}" if cluster.labels else ""
    if cluster.places_for_evaluation:
        labelled += " and one place like theirs for cluster.evaluation = apart"
    lines = [
        f"cluster.workers asks for at least {cluster.fewest_workers} workers of {each} each{labelled}, but the cluster "
        f"has room for {num_places(cluster, nodes)} (its nodes: {_listed(nodes)})"
    ]
    if may_grow:
        lines.append(
            f"grown as far as its autoscaler may it has room for {num_places(cluster, may_grow)} ({_listed(may_grow)})"
        )
    if wanted.get("GPU") and not any(offer.resources.get("GPU") for offer in (*nodes, *may_grow)):
        lines.append("there is no GPU at all: set cluster.gpus_per_worker=0 to train on CPUs")
    lines.append(
        "ask for fewer workers, for less per worker (cluster.cpus_per_worker, cluster.gpus_per_worker), or add nodes"
    )
    return ". ".join(line[:1].upper() + line[1:] if number else line for number, line in enumerate(lines))


def _listed(offers: Sequence[NodeOffer], most_shown: int = 8) -> str:
    shown = "; ".join(offer.described() for offer in offers[:most_shown])
    more = f"; and {len(offers) - most_shown} more" if len(offers) > most_shown else ""
    return f"{shown}{more}" or "none"
