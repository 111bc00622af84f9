"""The group of workers that train together, and which micro-batches each of them owns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from yolofleet.training.pulse import Pulse


def owned_micro_batches(num_micro_batches: int, rank: int, world_size: int) -> range:
    """Return the micro-batches of every step that a rank owns: contiguous, the first ranks one more where uneven.

    Raises:
        ValueError: There are more ranks than micro-batches.
    """
    if not 0 <= rank < world_size <= num_micro_batches:
        raise ValueError(f"rank {rank} of {world_size} workers cannot own one of {num_micro_batches} micro-batches")
    share, extra = divmod(num_micro_batches, world_size)
    start = rank * share + min(rank, extra)
    return range(start, start + share + (rank < extra))


CPU = torch.device("cpu")


@dataclass(frozen=True)
class WorkerGroup:
    """This process's place among the workers.

    Attributes:
        rank: Number of this worker.
        world_size: Number of workers.
        device: Where this worker computes.
        pulse: How far it is, for those who watch over it, and what they ask of it.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    pulse: Pulse = field(default_factory=Pulse, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the run directory."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over the workers, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.world_size > 1:
            dist.barrier()

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Concatenate every worker's (n, k) rows, in the order of ranks, on the first worker; None on the others."""
        if self.world_size == 1:
            return rows
        counts = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        counts[self.rank] = rows.shape[0]
        dist.all_reduce(counts)
        largest = int(counts.max())
        padded = torch.zeros((largest, rows.shape[1]), dtype=rows.dtype, device=self.device)
        padded[: rows.shape[0]] = rows.to(self.device)
        parts = [torch.empty_like(padded) for _ in range(self.world_size)] if self.is_first else None
        dist.gather(padded, parts)
        if parts is None:
            return None
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def first_value(self, value: int) -> int:
        """Return the first worker's value on every worker."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor)

    def leave_reason(self) -> str | None:
        """Return why the group is to save its state and end, None if it is not; the same moment on every worker."""
        if not self.any(self.pulse.leave_reason is not None):
            return None
        return self.pulse.leave_reason or "another worker was asked to"

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any worker."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)
