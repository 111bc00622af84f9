"""One sum over all workers, as training makes one after every step: does it come out right, and how fast.

Each member is a process of its own on a node, with a GPU of its own where there are any. The first opens a store, all
meet there, and a tensor is summed a few times. The bandwidth is that of the busiest link: of n members each sends and
receives 2 (n - 1) / n of the tensor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from yolofleet.cluster.doctor.amounts import speed
from yolofleet.cluster.doctor.line import CLUSTER, Line

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

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
    text = f"{backend}, {where}: {speed(reached)}"
    measured = {"bytes_per_second": reached, "members": float(len(seen))}
    if reached < SLOW_BYTES_PER_SECOND[backend]:
        cure = (
            "see which interface is used (NCCL_DEBUG=INFO), and name the fast one: NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME, or the provider's plugin for NCCL"
        )
        return Line(CLUSTER, SUBJECT, "warn", text, cure, measured)
    return Line(CLUSTER, SUBJECT, "ok", text, measured=measured)
