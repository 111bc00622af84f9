"""One process of the doctor's sum over all workers; other processes can import it, as they cannot import a test."""

from __future__ import annotations

import multiprocessing

from yolofleet.cluster.doctor import all_reduce


def take_part(
    rank: int, world_size: int, ports: multiprocessing.Queue[int], answers: multiprocessing.Queue[object]
) -> None:
    """Put what this one of ``world_size`` processes measured, or the name of its error, into ``answers``."""
    member = all_reduce.GroupProcess()
    timeout_seconds = 5.0 if world_size > 2 else 120.0
    port = member.open("127.0.0.1" if rank == 0 else None, timeout_seconds)
    if rank == 0:
        for _ in range(2):
            ports.put(port)
    try:
        answers.put(member.exchange("gloo", rank, world_size, "127.0.0.1", ports.get(), timeout_seconds))
    except Exception as error:
        answers.put(type(error).__name__)
