"""The sum over all workers, as processes of Ray's: who takes part, and an end to it whatever they hang in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolofleet.cluster.doctor.all_reduce import SUBJECT, Backend, Member, judge_exchange
from yolofleet.cluster.doctor.line import CLUSTER, Line
from yolofleet.cluster.doctor.nodes import SILENCE_CURE, Node, Silence, awaited, pinned, release
from yolofleet.specs.cluster import ClusterSpec

MOST_ON_A_NODE = 8


def look_at_exchange(
    nodes: Sequence[Node],
    cluster: ClusterSpec | None,
    free: Mapping[str, Mapping[str, float]],
    start_seconds: float,
    exchange_seconds: float,
) -> Line:
    """Sum a tensor over the nodes and judge it.

    Args:
        nodes: The nodes that answer.
        cluster: What the job asks for; without one, GPUs are used where there are any.
        free: What nobody uses of each node's resources, by the node's id.
        start_seconds: How long its processes may take to start.
        exchange_seconds: How long one of them waits for the others.
    """
    workers = [node for node in nodes if node.num_workers] or list(nodes)
    wants_gpus = any(node.gpus >= 1 for node in workers) if cluster is None else cluster.gpus_per_worker > 0
    if not workers:
        return Line(CLUSTER, SUBJECT, "fail", "no node answers", "see the lines of the nodes")
    if not wants_gpus:
        counts = {node: 1 if len(workers) > 1 else 2 for node in workers}
        return _exchanged("gloo", counts, start_seconds, exchange_seconds)
    counts = {node: min(int(free.get(node.id, {}).get("GPU", 0.0)), MOST_ON_A_NODE) for node in workers}
    if not all(counts.values()):
        busy = ", ".join(node.name for node, count in counts.items() if not count)
        cure = "ask again when no job runs: the sum takes a free GPU of each node, and disturbs no one"
        return Line(CLUSTER, SUBJECT, "warn", f"not tried: no GPU is free on {busy}", cure)
    return _exchanged("nccl", counts, start_seconds, exchange_seconds)


def _exchanged(backend: Backend, counts: Mapping[Node, int], start_seconds: float, exchange_seconds: float) -> Line:
    places = [node for node, count in counts.items() for _ in range(count)]
    what = "GPUs" if backend == "nccl" else "processes"
    where = f"{len(places)} {what} of {len(counts)} {'node' if len(counts) == 1 else 'nodes'}"
    members = [pinned(Member, node, num_gpus=1 if backend == "nccl" else 0) for node in places]
    try:
        addresses = [places[0].address, *[None] * (len(members) - 1)]
        opened = [
            member.open.remote(address, exchange_seconds) for member, address in zip(members, addresses, strict=True)
        ]
        ports = _named(places, awaited(opened, start_seconds))
        if failed := [answer for answer in ports if isinstance(answer, str)]:
            return Line(CLUSTER, SUBJECT, "fail", f"{backend}, {where}: does not start: {failed[0]}", SILENCE_CURE)
        asked = [
            member.exchange.remote(backend, rank, len(members), addresses[0], ports[0], exchange_seconds)
            for rank, member in enumerate(members)
        ]
        # Those who wait in vain for one of them say so after their own time, so they are given more.
        return judge_exchange(backend, where, _named(places, awaited(asked, 2 * exchange_seconds)))
    finally:
        release(members)


def _named(places: Sequence[Node], answers: Sequence[Any]) -> list[Any]:
    """Put a text with the node's name in place of each silence."""
    return [
        f"{node.name}: {answer.reason}" if isinstance(answer, Silence) else answer
        for node, answer in zip(places, answers, strict=True)
    ]
