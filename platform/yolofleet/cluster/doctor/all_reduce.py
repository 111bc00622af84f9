"""One all-reduce over all workers, as training makes one after every step: is the sum right, and how fast is it.

Each member is an actor on a node, with a GPU of its own where there are GPUs. The first opens a store, all members meet
there, and a tensor is summed a few times. The bandwidth is that of the busiest link: of n members each sends and
receives 2 (n - 1) / n of the tensor. Members that hang are killed after their time, whatever they wait for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from yolofleet.cluster.doctor.finding import CLUSTER, Finding
from yolofleet.cluster.doctor.nodes import (
    NO_ANSWER_CURE,
    ExaminedNode,
    NoAnswer,
    await_answers,
    end_actors,
    start_actor,
)
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.text import plural
from yolofleet.specs.cluster import ClusterSpec

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

SUBJECT = "all-reduce"
TENSOR_BYTES = {"nccl": 128 * 2**20, "gloo": 16 * 2**20}
REPEATS = 5
SLOW_BYTES_PER_SECOND = {"nccl": 1e9, "gloo": 50e6}
"""Below it the gradients of yolov7 (150 MB) take as long as a step: 0.15 s on GPUs, 3 s on CPUs."""
MOST_GPUS_ON_A_NODE = 8

Backend = Literal["nccl", "gloo"]


@dataclass(frozen=True)
class AllReduceResult:
    """What a member measured."""

    seconds: float
    """The quickest all-reduce."""
    is_right: bool
    """Whether every sum was right."""


class GroupProcess:
    """One rank of the group, in a process of its own."""

    def __init__(self) -> None:
        self._store: Store | None = None

    def open(self, address: str | None, timeout_seconds: float) -> int:
        """Load torch, and open the store where an address is given; returns its port, else 0."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not explicitly exported

        if address is None:
            return 0
        timeout = timedelta(seconds=timeout_seconds)
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        self._store = store
        return int(store.port)

    def exchange(
        self, backend: Backend, rank: int, world_size: int, address: str, port: int, timeout_seconds: float
    ) -> AllReduceResult:
        """Meet the other members at the store and sum; raises where one of them does not come within the time."""
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
            for _ in range(1 + REPEATS):  # the first one also builds the connections, and does not count
                tensor.fill_(rank + 1)
                dist.barrier()
                began = time.monotonic()
                dist.all_reduce(tensor)
                total = float(tensor[-1])  # which waits for the device
                seconds.append(time.monotonic() - began)
                right.append(total == world_size * (world_size + 1) / 2)
        finally:
            dist.destroy_process_group()
        return AllReduceResult(min(seconds[1:]), all(right))


def bandwidth(backend: Backend, world_size: int, seconds: float) -> float:
    """Return the bytes that pass the busiest link in a second."""
    return 2 * (world_size - 1) / world_size * TENSOR_BYTES[backend] / seconds


def check_all_reduce(backend: Backend, where: str, results: Sequence[AllReduceResult | str]) -> Finding:
    """Check what each member has measured, or why it has failed.

    Args:
        backend: What carried the tensor.
        where: The members, for people: "2 GPUs of 2 nodes".
        results: What each member measured; a text where it has failed.
    """
    finding, begin = partial(Finding, CLUSTER, SUBJECT), f"{backend}, {where}: "
    failed = [result for result in results if isinstance(result, str)]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        cure = (
            "open all ports between the nodes; name the interface that joins them (NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME); let host names resolve to addresses that the others reach"
        )
        return finding("fail", f"{begin}{failed[0]}{more}", cure)
    exchanges = [result for result in results if isinstance(result, AllReduceResult)]
    if not all(exchange.is_right for exchange in exchanges):
        cure = "a device or link computes wrongly: remove nodes until the sum is right, then repair the last one"
        return finding("fail", f"{begin}the sum is wrong", cure)
    if len(exchanges) == 1:
        return finding("ok", f"{begin}starts; there is no other to exchange with")
    reached = bandwidth(backend, len(exchanges), max(exchange.seconds for exchange in exchanges))
    seen = f"{begin}{format_bytes(reached)}/s"
    measured = {"bytes_per_second": reached, "members": float(len(exchanges))}
    if reached < SLOW_BYTES_PER_SECOND[backend]:
        cure = (
            "see which interface is used (NCCL_DEBUG=INFO), and name the fast one: NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME, or the provider's plugin for NCCL"
        )
        return finding("warn", seen, cure, measured)
    return finding("ok", seen, measured=measured)


def examine_all_reduce(
    nodes: Sequence[ExaminedNode],
    cluster: ClusterSpec | None,
    free: Mapping[str, Mapping[str, float]],
    start_seconds: float,
    exchange_seconds: float,
) -> Finding:
    """Sum a tensor over the nodes and check the result.

    Args:
        nodes: The nodes that answer.
        cluster: What the job asks for; without one, GPUs are used where there are any.
        free: The unused amount of each node's resources, by the node's id.
        start_seconds: How long the members may take to start.
        exchange_seconds: How long a member waits for the others.
    """
    workers = [node for node in nodes if node.num_workers] or list(nodes)
    wants_gpus = any(node.gpus >= 1 for node in workers) if cluster is None else cluster.gpus_per_worker > 0
    if not workers:
        return Finding(CLUSTER, SUBJECT, "fail", "no node answers", "see the findings of the nodes")
    if not wants_gpus:
        counts = {node: 1 if len(workers) > 1 else 2 for node in workers}
        return _run_group("gloo", counts, start_seconds, exchange_seconds)
    counts = {node: min(int(free.get(node.id, {}).get("GPU", 0.0)), MOST_GPUS_ON_A_NODE) for node in workers}
    if not all(counts.values()):
        busy = ", ".join(node.name for node, count in counts.items() if not count)
        cure = "run the doctor again when no job runs: the test needs a free GPU on each node, to disturb no job"
        return Finding(CLUSTER, SUBJECT, "warn", f"not tried: no GPU is free on {busy}", cure)
    return _run_group("nccl", counts, start_seconds, exchange_seconds)


def _run_group(
    backend: Backend, counts: Mapping[ExaminedNode, int], start_seconds: float, exchange_seconds: float
) -> Finding:
    nodes = [node for node, count in counts.items() for _ in range(count)]
    members_of = plural(len(nodes), "GPU" if backend == "nccl" else "process")
    where = f"{members_of} of {plural(len(counts), 'node')}"
    members = [start_actor(GroupProcess, node, num_gpus=1 if backend == "nccl" else 0) for node in nodes]
    try:
        addresses = [nodes[0].address, *[None] * (len(members) - 1)]
        opening = [
            member.open.remote(address, exchange_seconds) for member, address in zip(members, addresses, strict=True)
        ]
        ports = _name_missing(nodes, await_answers(opening, start_seconds))
        if failed := [answer for answer in ports if isinstance(answer, str)]:
            return Finding(CLUSTER, SUBJECT, "fail", f"{backend}, {where}: does not start: {failed[0]}", NO_ANSWER_CURE)
        exchanging = [
            member.exchange.remote(backend, rank, len(members), addresses[0], ports[0], exchange_seconds)
            for rank, member in enumerate(members)
        ]
        # Members that wait in vain for one of them report that after their own time, so they are given twice as much.
        return check_all_reduce(backend, where, _name_missing(nodes, await_answers(exchanging, 2 * exchange_seconds)))
    finally:
        end_actors(members)


def _name_missing(nodes: Sequence[ExaminedNode], answers: Sequence[Any]) -> list[Any]:
    """Replace each answer that did not come by a text with the node's name."""
    return [
        f"{node.name}: {answer.reason}" if isinstance(answer, NoAnswer) else answer
        for node, answer in zip(nodes, answers, strict=True)
    ]
