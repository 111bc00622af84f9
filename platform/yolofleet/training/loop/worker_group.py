"""The group of workers that train together, and which micro-batches each of them owns.

The pulse of one worker's training: how far it is and when it last moved, for threads that watch over it.

The loop beats at every micro-batch and every step; nothing else does, so a worker whose process lives but whose
training stands still (a stuck read, a stuck collective, a stopped process) has a pulse that grows old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from yolofleet.core.errors import WorkError


@dataclass(frozen=True)
class Reached:
    """How far a run had come.

    Attributes:
        step: Steps done.
        at: When that was known, in seconds since 1970.
    """

    step: int
    at: float


PAUSED = "it has come as far as it was asked to"
"""Why a worker leaves after its ``leave_after_step``."""


class StoppedError(WorkError):
    """The run was told to stop before its end (SIGTERM, say); its state was saved as far as there was time for it."""


class Pulse:
    """Written by the loop, read by other threads; also carries what the loop is asked to do.

    Attributes:
        step: Steps done.
        leave_reason: Why the worker should save its state and end after the step that it is in; None: train on.
        reached: How far the run was known to have come before this worker started, None where nobody knows.
        leave_after_step: The step after which the worker is to leave by itself; None: at the end of the run.
        figures: The newest value of everything that was reported; the first worker's only.
    """

    def __init__(
        self,
        reached: Reached | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        leave_after_step: int | None = None,
    ) -> None:
        self.step = 0
        self.leave_after_step = leave_after_step
        self.leave_reason: str | None = None
        self.reached = reached
        self.figures: dict[str, Any] = {}
        self._clock = clock
        self._last_beat: float | None = None

    def beat(self, step: int) -> None:
        """Note that training moves."""
        self.step = step
        self._last_beat = self._clock()
        if self.leave_after_step is not None and step >= self.leave_after_step:
            self.ask_to_leave(PAUSED)

    def tell(self, row: Mapping[str, Any]) -> None:
        """Note a row of metrics, for those who watch: a new mapping each time, as another thread may be reading."""
        self.figures = {**self.figures, **row}

    def rest(self) -> None:
        """Note that training has ended or not begun: standing still means nothing."""
        self._last_beat = None

    def silence_seconds(self) -> float:
        """Return for how long nothing has moved; 0 before the first beat."""
        return 0.0 if self._last_beat is None else self._clock() - self._last_beat

    def ask_to_leave(self, reason: str) -> None:
        """Ask the loop to take a checkpoint after the step that it is in, and end. The first reason counts."""
        self.leave_reason = self.leave_reason or reason


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
