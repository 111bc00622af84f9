"""The workers that train together: which micro-batches each owns, and how they exchange values."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from yolofleet.core.text import plural
from yolofleet.training.loop.worker_progress import WorkerProgress


def assign_micro_batches(num_micro_batches: int, rank: int, world_size: int, team_size: int = 1) -> range:
    """Return the micro-batches of every step that a rank owns: contiguous, the first ranks one more where uneven.

    Args:
        num_micro_batches: Micro-batches of a step.
        rank: This worker.
        world_size: Number of workers.
        team_size: Micro-batches whose batch norm is computed together: the ranks of a team own one each of the same
            teams of neighbouring micro-batches, in the same order.

    Raises:
        ValueError: There are more ranks than micro-batches, or teams do not come out even.
    """
    if not 0 <= rank < world_size <= num_micro_batches or world_size % team_size or num_micro_batches % team_size:
        raise ValueError(
            f"rank {rank} of {plural(world_size, 'worker')} in teams of {team_size} cannot own one of "
            f"{plural(num_micro_batches, 'micro-batch')}"
        )
    team, member = divmod(rank, team_size)
    share, extra = divmod(num_micro_batches // team_size, world_size // team_size)
    start = team * share + min(team, extra)
    return range(start * team_size + member, (start + share + (team < extra)) * team_size, team_size)


CPU = torch.device("cpu")


@dataclass(frozen=True)
class WorkerGroup:
    """This process as one of the workers."""

    rank: int = 0
    """Number of this worker."""
    world_size: int = 1
    device: torch.device = CPU
    """Where this worker computes."""
    progress: WorkerProgress = field(default_factory=WorkerProgress, compare=False)
    """How far it is, and what it is asked to do."""

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the run directory."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over the workers, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def sum_together(self, *tensors: torch.Tensor) -> None:
        """Sum flat tensors over the workers, in place and in one exchange, which is in float64."""
        if self.world_size > 1:
            flat = torch.cat([tensor.double() for tensor in tensors])
            dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part)

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

    def concatenate_texts(self, text: str) -> str:
        """Return the texts of all workers one after the other, on every worker."""
        data = torch.tensor(list(text.encode()), dtype=torch.int32, device=self.device)
        lengths = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(data)
        self.sum(lengths)
        everything = torch.zeros(int(lengths.sum()), dtype=torch.int32, device=self.device)
        start = int(lengths[: self.rank].sum())
        everything[start : start + len(data)] = data
        if len(everything):
            self.sum(everything)  # a worker's entry is 0 outside its own text
        return bytes(everything.tolist()).decode()

    def first_value(self, value: int) -> int:
        """Return the first worker's value on every worker."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor)

    def flag(self, is_raised: bool) -> torch.Tensor:
        """Return what this worker says, (1,) on the device, for the exchange of a step: the sum says how many do."""
        return torch.full((1,), float(is_raised), dtype=torch.float64, device=self.device)

    def leave_reason(self) -> str | None:
        """Return why the group is to save its state and end, or None; the same answer at once on every worker.

        A worker that was asked waits until all know: until the exchange of a step has been read.
        """
        progress = self.progress
        if self.world_size > 1 and not (progress.group_leaves or progress.is_past_last_step):
            return None
        return progress.leave_reason or ("another worker was asked to" if progress.group_leaves else None)
