"""Heartbeats: each worker reports its progress every second, and the driver reads the reports of all.

The reports meet in a small actor, the heartbeat board. A thread of each worker reports there and brings back what the
driver asks of the group; a thread of the driver reads the board. The driver ends workers that are silent, and asks the
group to save its state and leave when a node is about to go, when there is room for more workers, and when it is itself
asked to stop. A group that makes no progress is an event long before it is so long that workers are ended for it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from yolofleet.core.background import BackgroundLoop
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.run_directory import OnEvent
from yolofleet.training.loop.worker_progress import MOST_UNSENT, KnownProgress, WorkerProgress

if TYPE_CHECKING:
    import torch

REPORT_SECONDS = 1.0
ANSWER_TIMEOUT_SECONDS = 10.0
SHARE_OF_TIMEOUT = 0.25
"""No progress for this share of ``cluster.hang_timeout_seconds`` is an event."""


@dataclass(frozen=True)
class WorkerStatus:
    """A worker's last report."""

    group: str
    """Which start of the workers it belongs to."""
    rank: int
    """Its number in the group."""
    num_workers: int
    """Size of the group."""
    process: int
    """Its process on its node."""
    node: str
    """Ray's id of the node."""
    host: str
    """Address of the node."""
    step: int = 0
    """Steps that it has done."""
    silence_seconds: float = 0.0
    """Time since its training last made progress."""
    received_at: float = 0.0
    """When the report arrived, by the board's clock."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """What its training last reported; the first worker's only."""
    rows: tuple[Row, ...] = ()
    """Rows and events that it has appended to the run's logs since its last report."""
    gpu_used_bytes: int = 0
    """Used memory of its GPU, by any process; 0 without a GPU."""
    gpu_total_bytes: int = 0
    """Memory of its GPU."""

    def describe(self) -> str:
        """Return which worker it is, for a message."""
        return f"rank {self.rank} (process {self.process} on {self.host})"


class HeartbeatBoard:
    """Holds the last report of each worker, in an actor of its own on the driver's node.

    Args:
        clock: Seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._group = ""
        self._workers: dict[int, WorkerStatus] = {}
        self._rows: deque[Row] = deque(maxlen=MOST_UNSENT)
        self._leave_reason: str | None = None

    def begin(self, group: str) -> None:
        """Start empty for a new group; late reports of older groups are dropped."""
        self._group, self._workers, self._leave_reason = group, {}, None

    def report(self, worker: WorkerStatus) -> str | None:
        """Take a worker's report, and return why it should leave, if it should."""
        if worker.group != self._group:
            return "another group has replaced it"
        self._rows.extend(worker.rows)
        self._workers[worker.rank] = replace(worker, received_at=self._clock(), rows=())
        return self._leave_reason

    def workers(self) -> tuple[float, list[WorkerStatus]]:
        """Return the time now and the last reports of all workers, by rank."""
        return self._clock(), [self._workers[rank] for rank in sorted(self._workers)]

    def take_rows(self) -> list[Row]:
        """Return the rows and events of the workers since the last call."""
        rows = [*self._rows]
        self._rows.clear()
        return rows

    def ask_to_leave(self, reason: str) -> None:
        """Ask the group to save its state and end."""
        self._leave_reason = self._leave_reason or reason


@contextmanager
def report_heartbeats(
    board: Any, worker: WorkerStatus, progress: WorkerProgress, device: torch.device
) -> Iterator[None]:
    """Report a worker's progress to the board for the length of a with block."""
    import ray

    one_at_a_time = threading.Lock()

    def report() -> None:
        with one_at_a_time:
            send(tuple(progress.unsent))

    def send(rows: tuple[Row, ...]) -> None:
        used, total = _gpu_memory(device)
        now = replace(
            worker,
            step=progress.step,
            silence_seconds=progress.silence_seconds(),
            metrics=progress.metrics,
            rows=rows,
            gpu_used_bytes=used,
            gpu_total_bytes=total,
        )
        # A failure means that the driver's node is slow or gone; if it is gone, Ray ends this process.
        reason = ray.get(board.report.remote(now), timeout=ANSWER_TIMEOUT_SECONDS)
        for _ in rows:
            progress.unsent.popleft()
        if reason is not None:
            progress.ask_to_leave(reason)

    try:
        with BackgroundLoop(
            report,
            seconds=REPORT_SECONDS,
            name="heartbeat",
            warning="the driver does not take this worker's heartbeat",
            at_once=True,
            close_timeout_seconds=REPORT_SECONDS,
        ):
            yield
    finally:
        with suppress(Exception):
            report()  # the last rows


def _gpu_memory(device: torch.device) -> tuple[int, int]:
    """Return the used and the total bytes of a GPU's memory; zeros for a CPU, whose memory Ray itself reports."""
    if device.type != "cuda":
        return 0, 0
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def own_status(group: str, rank: int, num_workers: int) -> WorkerStatus:
    """Return this process's first report."""
    import ray

    return WorkerStatus(
        group=group,
        rank=rank,
        num_workers=num_workers,
        process=os.getpid(),
        node=ray.get_runtime_context().get_node_id(),
        host=ray.util.get_node_ip_address(),
    )


def newest_progress(
    now: float, workers: list[WorkerStatus], wall_clock: Callable[[], float] = time.time
) -> KnownProgress | None:
    """Return how far the first worker was at its last report."""
    first = next((worker for worker in workers if worker.rank == 0), None)
    return None if first is None else KnownProgress(first.step, wall_clock() - (now - first.received_at))


def silent_workers(now: float, workers: list[WorkerStatus], timeout_seconds: float) -> list[WorkerStatus]:
    """Return those whose reports stopped longer ago than the timeout: their own hang watch cannot end them."""
    return [worker for worker in workers if now - worker.received_at > timeout_seconds]


def group_silence_seconds(now: float, workers: list[WorkerStatus]) -> float:
    """Return the time since any worker made progress; 0 before all of them train."""
    if not workers or len(workers) < workers[0].num_workers:
        return 0.0
    return min(_silence_seconds(now, worker) for worker in workers)


def _silence_seconds(now: float, worker: WorkerStatus) -> float:
    """Return the time since a worker is known to have made progress; 0 for one that reports but does not train."""
    if worker.silence_seconds == 0.0 and not _is_late(now, worker):
        return 0.0
    return worker.silence_seconds + now - worker.received_at


def _is_late(now: float, worker: WorkerStatus) -> bool:
    return now - worker.received_at > 3 * REPORT_SECONDS


class StallWarning:
    """Appends an event when a group stops making progress, and another when it continues.

    Args:
        on_event: Takes the events ``stalled`` and ``moving``.
        hang_timeout_seconds: The silence after which workers are ended.
    """

    def __init__(self, on_event: OnEvent, hang_timeout_seconds: float) -> None:
        self._on_event = on_event
        self._threshold_seconds = hang_timeout_seconds * SHARE_OF_TIMEOUT
        self._longest_seconds = 0.0

    def update(self, now: float, workers: list[WorkerStatus]) -> None:
        """Look at the last reports."""
        seconds = group_silence_seconds(now, workers)
        step = min((worker.step for worker in workers), default=0)
        if seconds > self._threshold_seconds:
            if not self._longest_seconds:
                late = ", ".join(worker.describe() for worker in workers if _is_late(now, worker))
                reason = f"nothing is heard of {late}" if late else "all of them answer, and wait"
                self._on_event("stalled", step=step, silence_seconds=round(seconds, 3), reason=reason)
            self._longest_seconds = max(self._longest_seconds, seconds)
        elif self._longest_seconds:
            self._on_event("moving", step=step, seconds=round(self._longest_seconds, 3))
            self._longest_seconds = 0.0
