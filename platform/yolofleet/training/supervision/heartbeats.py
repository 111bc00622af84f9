"""A group of workers that stands still, noted in the run's events before it is so long that anyone is ended for it.

Who trains at the moment, and how far: between the workers of Ray Train's group and the driver that watches them.

A small actor holds the list. A thread of each worker reports its pulse there every second and brings back what the
driver asks of the group; a thread of the driver reads the list. The driver ends workers that are silent, and asks the
group to save its state and leave when a node is about to go, when there is room for more workers, and when it is itself
told to stop.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from yolofleet.training.loop.worker_group import Pulse, Reached

if TYPE_CHECKING:  # the list's own process does without torch
    import torch
from yolofleet.tracking.mirror import Told

REPORT_SECONDS = 1.0
ANSWER_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Member:
    """A worker, as it last reported itself.

    Attributes:
        group: Which start of the workers it belongs to.
        rank: Its number in the group.
        num_workers: Size of the group.
        process: Its process on its node.
        node: Ray's id of the node.
        host: Address of the node.
        step: Steps that it has done.
        silence_seconds: For how long its training had not moved.
        heard_at: When the report arrived, by the clock of the list.
        figures: What its training last reported; the first worker's only.
        gpu_used_bytes: Memory of its GPU that is taken, by whomever; 0 without a GPU.
        gpu_total_bytes: Memory of its GPU.
    """

    group: str
    rank: int
    num_workers: int
    process: int
    node: str
    host: str
    step: int = 0
    silence_seconds: float = 0.0
    heard_at: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    gpu_used_bytes: int = 0
    gpu_total_bytes: int = 0

    def described(self) -> str:
        """Return which worker it is, for a message."""
        return f"rank {self.rank} (process {self.process} on {self.host})"


class Attendance:
    """The list; it lives in an actor of its own on the driver's node.

    Args:
        clock: Seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._group = ""
        self._members: dict[int, Member] = {}
        self._leave_reason: str | None = None

    def begin(self, group: str) -> None:
        """Start an empty list for a new group; what late members of older ones report is dropped."""
        self._group, self._members, self._leave_reason = group, {}, None

    def report(self, member: Member) -> str | None:
        """Note a worker's report, and return why it should leave, if it should."""
        if member.group != self._group:
            return "another group took its place"
        self._members[member.rank] = replace(member, heard_at=self._clock())
        return self._leave_reason

    def members(self) -> tuple[float, list[Member]]:
        """Return the time now and everyone's last report, by rank."""
        return self._clock(), [self._members[rank] for rank in sorted(self._members)]

    def ask_to_leave(self, reason: str) -> None:
        """Ask the group to save its state and end."""
        self._leave_reason = self._leave_reason or reason


@contextmanager
def attending(attendance: Any, member: Member, pulse: Pulse, device: torch.device) -> Iterator[None]:
    """Report a worker's pulse to the list (an actor's handle) for the length of a with block.

    Args:
        attendance: The handle.
        member: The worker, as it begins.
        pulse: What its loop beats.
        device: Where it computes.
    """
    import ray

    over = threading.Event()

    def report() -> None:
        while True:
            used, total = _gpu_memory(device)
            now = replace(
                member,
                step=pulse.step,
                silence_seconds=pulse.silence_seconds(),
                figures=pulse.figures,
                gpu_used_bytes=used,
                gpu_total_bytes=total,
            )
            try:
                reason = ray.get(attendance.report.remote(now), timeout=ANSWER_TIMEOUT_SECONDS)
            except ray.exceptions.RayError:  # the driver's node is slow or gone; in the end Ray ends this process
                reason = None
            if reason is not None:
                pulse.ask_to_leave(reason)
            if over.wait(REPORT_SECONDS):
                return

    thread = threading.Thread(target=report, name="attendance", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _gpu_memory(device: torch.device) -> tuple[int, int]:
    """Return how many bytes of the device's memory are taken, and of how many; 0 of 0 for a CPU: Ray tells its own."""
    if device.type != "cuda":
        return 0, 0
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def this_member(group: str, rank: int, num_workers: int) -> Member:
    """Return how this process reports itself."""
    import ray

    return Member(
        group=group,
        rank=rank,
        num_workers=num_workers,
        process=os.getpid(),
        node=ray.get_runtime_context().get_node_id(),
        host=ray.util.get_node_ip_address(),
    )


def reached(now: float, members: list[Member], wall_clock: Callable[[], float] = time.time) -> Reached | None:
    """Return how far the first worker was when it was last heard of."""
    first = next((member for member in members if member.rank == 0), None)
    return None if first is None else Reached(first.step, wall_clock() - (now - first.heard_at))


def silent_members(now: float, members: list[Member], timeout_seconds: float) -> list[Member]:
    """Return those that neither trained nor reported within the timeout: their own watch cannot end them."""
    return [member for member in members if now - member.heard_at > timeout_seconds]


def stood_still_seconds(now: float, members: list[Member]) -> float:
    """Return for how long no worker at all has moved; 0 before all of them train."""
    if not members or len(members) < members[0].num_workers:
        return 0.0
    return min(_still_seconds(now, member) for member in members)


def unheard(now: float, members: list[Member]) -> list[Member]:
    """Return those whose reports do not arrive, so that it is they who keep the others waiting."""
    return [member for member in members if now - member.heard_at > 3 * REPORT_SECONDS]


def _still_seconds(now: float, member: Member) -> float:
    """Return for how long a worker has not moved as far as is known; one that does not train never stands still."""
    unheard_seconds = now - member.heard_at
    if member.silence_seconds == 0.0 and unheard_seconds <= 3 * REPORT_SECONDS:
        return 0.0
    return member.silence_seconds + unheard_seconds


SHARE_OF_TIMEOUT = 0.25
"""Standing still for this share of ``cluster.hang_timeout_seconds`` is worth a line."""


class Stall:
    """Notes when a group stops to move, and when it moves again.

    Args:
        told: Takes the events ``stalled`` and ``moving``.
        hang_timeout_seconds: The silence after which workers are ended.
    """

    def __init__(self, told: Told, hang_timeout_seconds: float) -> None:
        self._told = told
        self._threshold_seconds = hang_timeout_seconds * SHARE_OF_TIMEOUT
        self._longest_seconds = 0.0

    def look(self, now: float, members: list[Member]) -> None:
        """Judge everyone's last report.

        Args:
            now: The time by the clock of the list.
            members: The workers that have reported.
        """
        seconds = stood_still_seconds(now, members)
        step = min((member.step for member in members), default=0)
        if seconds > self._threshold_seconds:
            if not self._longest_seconds:
                lost = [member.described() for member in unheard(now, members)]
                reason = f"nothing is heard of {', '.join(lost)}" if lost else "all of them answer, and wait"
                self._told("stalled", step=step, silence_seconds=round(seconds, 3), reason=reason)
            self._longest_seconds = max(self._longest_seconds, seconds)
        elif self._longest_seconds:
            self._told("moving", step=step, seconds=round(self._longest_seconds, 3))
            self._longest_seconds = 0.0
