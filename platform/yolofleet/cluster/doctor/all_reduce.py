"""One sum over all workers, as training makes one after every step: does it come out right, and how fast.

Each member is a process of its own on a node, with a GPU of its own where there are any. The first opens a store, all
meet there, and a tensor is summed a few times. The bandwidth is that of the busiest link: of n members each sends and
receives 2 (n - 1) / n of the tensor.

The sum over all workers, as processes of Ray's: who takes part, and an end to it whatever they hang in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from yolofleet.cluster.doctor.finding import CLUSTER, Line
from yolofleet.core.byte_sizes import format_bytes

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store
from collections.abc import Mapping
from typing import Any

from yolofleet.cluster.doctor.nodes import SILENCE_CURE, Node, Silence, awaited, pinned, release
from yolofleet.specs.cluster import ClusterSpec

SUBJECT = "all-reduce"
TENSOR_BYTES = {"nccl": 128 * 2**20, "gloo": 16 * 2**20}
REPEATS = 5
SLOW_BYTES_PER_SECOND = {"nccl": 1e9, "gloo": 50e6}
"""Below it the gradients of yolov7 (150 MB) take as long as a step: 0.15 s on GPUs, 3 s on CPUs."""

Backend = Literal["nccl", "gloo"]


@dataclass(frozen=True)
class Exchange:
    """What a member saw.

    Attributes:
        seconds: The quickest sum; for one member of one there is nothing to exchange.
        is_right: Whether every sum came out right.
    """

    seconds: float
    is_right: bool


class Member:
    """One of those who sum, in a process of its own."""

    def __init__(self) -> None:
        self._store: Store | None = None

    def open(self, address: str | None, timeout_seconds: float) -> int:
        """Load torch, and open the store that all meet at where an address is given; returns its port, else 0."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not explicitly exported

        if address is None:
            return 0
        timeout = timedelta(seconds=timeout_seconds)
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        self._store = store
        return int(store.port)

    def exchange(
        self, backend: Backend, rank: int, world_size: int, address: str, port: int, timeout_seconds: float
    ) -> Exchange:
        """Meet the others and sum; raises where they do not come within the time.

        Args:
            backend: Who carries the tensor.
            rank: Number of this member.
            world_size: Number of members.
            address: Host of the store.
            port: Its port.
            timeout_seconds: How long one of the others is waited for.
        """
        import torch
        import torch.distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not explicitly exported

        timeout = timedelta(seconds=timeout_seconds)
        store = self._store or TCPStore(address, port, is_master=False, timeout=timeout)
        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        try:
            tensor = torch.empty(TENSOR_BYTES[backend] // 4, device=device)
            seconds, right = [], []
            for _ in range(1 + REPEATS):
                tensor.fill_(rank + 1)
                dist.barrier()
                began = time.monotonic()
                dist.all_reduce(tensor)
                total = float(tensor[-1])  # which waits for the device
                seconds.append(time.monotonic() - began)
                right.append(total == world_size * (world_size + 1) / 2)
        finally:
            dist.destroy_process_group()
        return Exchange(min(seconds[1:]), all(right))


def bandwidth(backend: Backend, world_size: int, seconds: float) -> float:
    """Return the bytes that pass the busiest link in a second."""
    return 2 * (world_size - 1) / world_size * TENSOR_BYTES[backend] / seconds


def judge_exchange(backend: Backend, where: str, found: Sequence[Exchange | str]) -> Line:
    """Judge the sum by what each member saw, or by why it saw nothing.

    Args:
        backend: Who carried the tensor.
        where: The members, for people: "2 GPUs of 2 nodes".
        found: What each member saw; a text where it has failed.
    """
    failed = [member for member in found if isinstance(member, str)]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        cure = (
            "open all ports between the nodes; name the interface that joins them (NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME); let host names resolve to addresses that the others reach"
        )
        return Line(CLUSTER, SUBJECT, "fail", f"{backend}, {where}: {failed[0]}{more}", cure)
    seen = [member for member in found if isinstance(member, Exchange)]
    if not all(member.is_right for member in seen):
        cure = "a device or link computes wrong: take nodes away until it is right, then see to the last one"
        return Line(CLUSTER, SUBJECT, "fail", f"{backend}, {where}: the sum is wrong", cure)
    if len(seen) == 1:
        return Line(CLUSTER, SUBJECT, "ok", f"{backend}, {where}: starts; there is no other to exchange with")
    reached = bandwidth(backend, len(seen), max(member.seconds for member in seen))
    text = f"{backend}, {where}: {format_bytes(reached)}/s"
    measured = {"bytes_per_second": reached, "members": float(len(seen))}
    if reached < SLOW_BYTES_PER_SECOND[backend]:
        cure = (
            "see which interface is used (NCCL_DEBUG=INFO), and name the fast one: NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME, or the provider's plugin for NCCL"
        )
        return Line(CLUSTER, SUBJECT, "warn", text, cure, measured)
    return Line(CLUSTER, SUBJECT, "ok", text, measured=measured)


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
