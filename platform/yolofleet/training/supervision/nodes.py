"""The nodes of a cluster: what Ray knows of them, how many workers they have room for, and whether they reach the data.

Room is counted from offers, so it can be computed without a cluster. What Ray knows needs a connection. The hosts that
will train are asked before anything starts whether they read the data and write the run directory.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolofleet.core.cores import num_cores
from yolofleet.core.errors import UserError
from yolofleet.core.file_names import MANIFEST_NAME, NODE_GROUPS_VARIABLE
from yolofleet.core.text import and_more, plural
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.yaml_document import read_yaml
from yolofleet.storage import StorageError, open_storage
from yolofleet.training.supervision.group_room import STRICT, GroupRoom, group_room

MOST_OFFERS_SHOWN = 8
LAUNCHER_FILE = "ray_bootstrap_config.yaml"
"""What ``ray up`` leaves in the head's home folder: the launcher's file, completed."""
REACH_TIMEOUT_SECONDS = 120.0
"""How long a host may take to say whether it reaches the data."""


@dataclass(frozen=True)
class NodeOffer:
    """The resources of one node, or of each node of a group that an autoscaler may start."""

    resources: Mapping[str, float]
    """Amounts by kind, as Ray counts them."""
    count: int = 1
    """Nodes like this."""
    labels: Mapping[str, str] | None = None
    """Ray's labels of the node."""
    name: str = "node"
    """What to call it in a message."""

    def slots(self, wanted: Mapping[str, float], labels: Mapping[str, str]) -> int:
        """Return how many workers have room: resources of two nodes do not add up to one worker."""
        if self.labels is not None and any(self.labels.get(key) != value for key, value in labels.items()):
            return 0
        counts = [int(self.resources.get(kind, 0.0) / amount + 1e-9) for kind, amount in wanted.items() if amount > 0]
        return self.count * min(counts)

    def describe(self) -> str:
        """Return what it offers, for a message."""
        amounts = ", ".join(f"{self.resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        return f"{self.name}: {amounts}" if self.count == 1 else f"{self.count} x {self.name}: {amounts}"


def this_machine() -> NodeOffer:
    """Return the most that a Ray of this machine's own can offer."""
    import torch

    return NodeOffer({"CPU": num_cores(), "GPU": torch.cuda.device_count()}, name="this machine")


def wanted_resources(cluster: ClusterSpec) -> dict[str, float]:
    """Return what one worker needs."""
    wanted = {"CPU": cluster.worker_cpus, "GPU": cluster.gpus_per_worker}
    return {kind: amount for kind, amount in wanted.items() if amount > 0}


def worker_labels(cluster: ClusterSpec, num_workers: int) -> list[dict[str, str]]:
    """Return the labels that the node of each worker must have."""
    labels = [dict(cluster.labels) for _ in range(num_workers)]
    labels[0] |= cluster.first_worker_labels
    return labels


def num_slots(cluster: ClusterSpec, offers: Sequence[NodeOffer]) -> int:
    """Return how many such workers the offers have room for, whatever groups they form."""
    wanted = wanted_resources(cluster)
    return sum(offer.slots(wanted, cluster.labels) for offer in offers)


def room_for(cluster: ClusterSpec, offers: Sequence[NodeOffer]) -> GroupRoom:
    """Return the room that the offers have for a group of the job's workers."""
    wanted = wanted_resources(cluster)
    return group_room(offers, wanted, cluster.labels, cluster.first_worker_labels, cluster.placement)


def fits(cluster: ClusterSpec, offers: Sequence[NodeOffer]) -> bool:
    """Return whether the fewest workers, placed as the job asks, and the evaluation beside them have room."""
    return room_for(cluster, offers).slots(cluster.slots_for_evaluation) >= cluster.fewest_slots


def evaluates_separately(cluster: ClusterSpec, offers: Sequence[NodeOffer]) -> bool:
    """Return whether evaluation gets a process of its own; on one node it would only take from the workers."""
    if cluster.evaluation == "auto":
        return len(offers) > 1 and num_slots(cluster, offers) > cluster.most_workers
    return cluster.evaluation == "apart"


def has_room(cluster: ClusterSpec, nodes: Sequence[NodeOffer], may_grow: Sequence[NodeOffer] = ()) -> bool:
    """Return whether the fewest workers, and the evaluation beside them, have room now.

    Args:
        cluster: What the job asks for.
        nodes: The nodes that are there.
        may_grow: The groups of nodes that an autoscaler may start, each with its largest count.

    Raises:
        UserError: They never have; says what is there and what is missing.
    """
    if fits(cluster, nodes):
        return True
    if fits(cluster, may_grow):
        return False
    raise UserError(shortage(cluster, nodes, may_grow))


def shortage(cluster: ClusterSpec, nodes: Sequence[NodeOffer], may_grow: Sequence[NodeOffer] = ()) -> str:
    """Return what is asked for, what is there, and the cure."""
    wanted, beside = wanted_resources(cluster), cluster.slots_for_evaluation
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in wanted.items())
    labelled = f" on nodes labelled {dict(cluster.labels)}" if cluster.labels else ""
    if cluster.first_worker_labels:
        labelled += f", the first one on a node labelled {cluster.labels | cluster.first_worker_labels}"
    if cluster.placement in STRICT:
        labelled += f" with cluster.placement = {cluster.placement}"
    if beside:
        labelled += " and the same resources once more for cluster.evaluation = apart"
    lines = [
        f"cluster.workers asks for at least {plural(cluster.fewest_workers, 'worker')} of {each} each{labelled}, but "
        f"the cluster has room for {room_for(cluster, nodes).slots(beside)} (its nodes: {_describe(nodes)})"
    ]
    if may_grow:
        grown = room_for(cluster, may_grow).slots(beside)
        lines.append(f"grown as far as its autoscaler may it has room for {grown} ({_describe(may_grow)})")
    if wanted.get("GPU") and not any(offer.resources.get("GPU") for offer in (*nodes, *may_grow)):
        lines.append("there is no GPU at all: set cluster.gpus_per_worker=0 to train on CPUs")
    placement = ", for another cluster.placement" if cluster.placement in STRICT else ""
    less = "for less per worker (cluster.cpus_per_worker, cluster.gpus_per_worker)"
    lines.append(f"ask for fewer workers, {less}{placement}, or add nodes")
    return ". ".join(line[:1].upper() + line[1:] if number else line for number, line in enumerate(lines))


def _describe(offers: Sequence[NodeOffer]) -> str:
    return and_more([offer.describe() for offer in offers], MOST_OFFERS_SHOWN, separator="; ") or "none"


def staying_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive and not about to go, as Ray lists them."""
    import ray

    draining = draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def alive_offers() -> list[NodeOffer]:
    """Return what the nodes that stay have."""
    return [_offer(node, node["Resources"]) for node in staying_nodes()]


def free_offers() -> list[NodeOffer]:
    """Return what the nodes that stay have free."""
    free = free_resources()
    return [_offer(node, free.get(node["NodeID"], {})) for node in staying_nodes()]


def _offer(node: Mapping[str, Any], resources: Mapping[str, float]) -> NodeOffer:
    return NodeOffer(resources, labels=node.get("Labels"), name=node["NodeManagerAddress"])


def free_resources() -> dict[str, dict[str, float]]:
    """Return the unused resources of each node, by the node's id."""
    import ray

    return dict(ray._private.state.available_resources_per_node())


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are about to go (Ray drains them)."""
    import ray

    return set(ray._private.state.state.get_draining_nodes() or {})


def growth_offers() -> list[NodeOffer]:
    """Return the groups of nodes that the cluster's autoscaler may start, each with its largest count; none without.

    Only a managed Ray tells them itself. On Kubernetes the rendered manifest does, by the environment; after ``ray up``
    the launcher's file does, which lies on the head.

    Raises:
        UserError: What tells them cannot be read.
    """
    import ray

    config = ray._private.state.state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return [
            NodeOffer(dict(group.resources), count=group.max_count if group.max_count >= 0 else 10**6, name=group.name)
            for group in config.node_group_configs
        ]
    return offers_of_groups(os.environ.get(NODE_GROUPS_VARIABLE), Path.home() / LAUNCHER_FILE)


def offers_of_groups(declared: str | None, launcher_file: Path) -> list[NodeOffer]:
    """Return the groups of nodes that an autoscaler may start.

    Args:
        declared: The launcher's ``available_node_types`` as JSON; None: see the file.
        launcher_file: The launcher's file, which may be missing.

    Raises:
        UserError: One of them is not as Ray's launcher writes it.
    """
    document: Any = {}
    try:
        if declared is not None:
            document = {"available_node_types": json.loads(declared)}
        elif launcher_file.is_file():
            document = read_yaml(launcher_file)
        most = document.get("max_workers", 0)
        return [
            NodeOffer(group["resources"], int(group.get("max_workers", most)), group.get("labels") or {}, str(name))
            for name, group in document.get("available_node_types", {}).items()
            if name != document.get("head_node_type")
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        where = launcher_file if declared is None else NODE_GROUPS_VARIABLE
        raise UserError(
            f"{where}: these are no groups of nodes that an autoscaler may start ({type(error).__name__}: {error}); "
            "write available_node_types of Ray's launcher: {NAME: {resources: {CPU: 8, GPU: 1}, max_workers: 4}}"
        ) from error


def hosts() -> dict[str, str]:
    """Return a node's id by host of the cluster."""
    import ray

    return {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}


def training_hosts(cluster: ClusterSpec) -> dict[str, str]:
    """Return a node's id by host that has room for a worker of the job when it does nothing else."""
    import ray

    wanted = wanted_resources(cluster)
    return {
        node["NodeManagerAddress"]: node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and _offer(node, node["Resources"]).slots(wanted, cluster.labels)
    }


def check_reach(job: JobSpec, nodes: Mapping[str, str]) -> None:
    """Make sure that hosts read the data and write the run directory.

    Args:
        job: What they shall train.
        nodes: A node's id by host.

    Raises:
        UserError: One does not: which, what, and the cure.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    paths = (job.storage, job.name, job.data.train, job.data.val)
    probe = ray.remote(num_cpus=0, max_retries=1)(find_problem)
    asked = {
        host: probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*paths)
        for host, node in nodes.items()
    }
    problems: dict[str, str] = {}
    for host, answer in asked.items():
        try:
            problem = ray.get(answer, timeout=REACH_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            problem = f"it does not answer ({type(error).__name__})"
        if problem is not None:
            problems[host] = problem
    if problems:
        host, problem = next(iter(problems.items()))
        more = f" (such a problem: {len(problems)} of {len(asked)} hosts)" if len(asked) > 1 else ""
        raise UserError(
            f"host {host} cannot train this job: {problem}{more}. Workers run there: use storage that all hosts reach "
            "(s3://, or a folder that is mounted on all of them), and give each the credentials in its environment"
        )


def find_problem(storage_url: str, name: str, *datasets: str) -> str | None:
    """Return why this host cannot train, or None: it reads and writes the run directory, and finds the data."""
    key = f"probe/{uuid.uuid4().hex}"
    try:
        run = open_storage(storage_url).child(name)
        if not run.exists("job.yaml"):
            return f"storage {storage_url} does not show it the run directory that the driver has made there"
        run.put(key, b"")
        run.delete(key)
        for url in datasets:
            if not open_storage(url).exists(MANIFEST_NAME):
                return f"it finds no dataset at {url}"
    except StorageError as error:
        return str(error)
    return None
