"""A driver's side of the cluster's queue: its ticket, and what it does while it waits, trains, grows and gives back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from yolofleet.core.background import BackgroundLoop
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.liveness import user_name
from yolofleet.core.terminal import note
from yolofleet.core.text import one_line
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.training.supervision.nodes import growth_offers, wanted_resources
from yolofleet.training.supervision.queue import Answer, start_queue
from yolofleet.training.supervision.turns import Ticket, Turn

USER_VARIABLE = "YOLOFLEET_USER"
"""Who sent a job, in its environment."""
SENT_VARIABLE = "YOLOFLEET_SENT_SECONDS"
"""When a job was sent, in seconds since 1970, in its environment."""
LONGEST_START_SECONDS = 600.0
"""A job that says it was sent longer ago is taken for one of then: its sender's clock may be wrong."""
POLL_SECONDS = 2.0
ANSWER_SECONDS = 20.0
LEAVE_SECONDS = 5.0
WAITING = "waiting for room: "
ADMITTED = "there is room: "
"""How the lines begin that a driver prints when it waits, and when it does no longer."""

Ask = Callable[[Ticket], Answer]
Request = Callable[[list[dict[str, float]]], object]


def sender_name() -> str:
    """Return who sent this job, else the user of this process."""
    return os.environ.get(USER_VARIABLE) or user_name()


def ticket_of(cluster: ClusterSpec, name: str, url: str, *, most: int, step: int = 1, shares: bool = False) -> Ticket:
    """Return the ticket of a run or search in this driver.

    Args:
        cluster: What it asks for.
        name: Its name.
        url: URL of its directory.
        most: Slots that it can use.
        step: Slots of one trial; 1 for a run.
        shares: Whether it is a search.
    """
    import ray

    sent = os.environ.get(SENT_VARIABLE)
    return Ticket(
        id=f"{url} {os.getpid()} {ray.get_runtime_context().get_job_id()}",
        name=name,
        user=sender_name(),
        project=cluster.project,
        priority=cluster.priority,
        arrival=max(float(sent), time.time() - LONGEST_START_SECONDS) if sent else 0.0,
        wanted=wanted_resources(cluster),
        labels=dict(cluster.labels),
        first_labels=dict(cluster.first_worker_labels) if cluster.most_workers > 1 or not shares else None,
        placement="PACK" if shares else cluster.placement,
        fewest=step if shares else cluster.fewest_slots,
        beside=0 if shares else cluster.slots_for_evaluation,
        most=most,
        step=step,
        shares=shares,
        ray_job=ray.get_runtime_context().get_job_id(),
    )


class Admission:
    """A driver's ticket in the queue, for the length of a with block.

    Args:
        ticket: What the driver asks for.
        ask: Sends the ticket; raises where the queue does not answer.
        leave: Takes the ticket out of the queue.
        on_event: Appends an event to the directory of the run or search.
    """

    def __init__(
        self, ticket: Ticket, ask: Ask, leave: Callable[[str], object], on_event: Callable[..., object]
    ) -> None:
        self._ticket = ticket
        self._most = ticket.most
        self._ask = ask
        self._leave = leave
        self._on_event = on_event
        self._lock = threading.RLock()
        self._slots = 0
        self._asked = 0.0
        self._loop = BackgroundLoop(
            self._ask_now, seconds=POLL_SECONDS, name="queue", warning="the cluster's queue does not answer"
        )

    def __enter__(self) -> Admission:
        self._loop.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.close()
        with suppress(Exception):  # its lease ends anyway
            self._leave(self._ticket.id)

    def wait(self, limit_seconds: float | None, check_stop: Callable[[], object], request: Request) -> bool:
        """Wait until the fewest slots are free and it is this ticket's turn; they are then held.

        A run that starts again has its turn at once, with all slots that it had, where those are still free.

        Args:
            limit_seconds: How long; None: without limit.
            check_stop: Raises where the driver was asked to stop.
            request: Asks an autoscaler, where there is one, for bundles of resources.

        Returns:
            False: the cluster has lost the nodes for it.

        Raises:
            UserError: The quota will never allow it.
            WorkError: The time is over.
        """
        began, reason = time.monotonic(), None
        grows = bool(growth_offers())
        kept = self._ticket.holds or self._ticket.kept
        most = self._most if self._ticket.shares else max(self._ticket.fewest, kept)
        self._change(holds=0, kept=kept, waits=True, most=most)
        try:
            while (turn := self._next_turn(request if grows else None)).slots < self._ticket.fewest:
                if turn.reason not in (None, reason):
                    reason = turn.reason
                    note(f"{WAITING}{reason}")
                    self._on_event("waiting", reason=f"{WAITING}{reason}")
                check_stop()
                # Without a reason, the queue has just started and only listens.
                if limit_seconds is not None and turn.reason and time.monotonic() - began > limit_seconds:
                    raise WorkError(f"no room within cluster.wait_for_room_seconds = {limit_seconds:g}: {reason}")
                time.sleep(POLL_SECONDS)
                if turn.lacks_nodes and not self._ticket.shares:
                    return False
            self.hold(turn.slots)
        finally:
            self._change(waits=False)
            if grows:
                request([])
        if reason is not None:
            waited = time.monotonic() - began
            note(f"{ADMITTED}waited {waited:.0f} s")
            self._on_event("admitted", waited_seconds=round(waited, 3))
        return True

    def _next_turn(self, request: Request | None) -> Turn:
        """Return the answer of the queue; one that cannot be reached gives no turn."""
        import ray

        try:
            answer = self._ask_now()
        except ray.exceptions.RayError as error:
            return Turn(0, f"the cluster's queue does not answer ({one_line(error, 200)})")
        if answer.problem is not None:  # who waits already is not ended by another's slip in that file
            return Turn(0, f"the quotas of this cluster cannot be read: {answer.problem}")
        if answer.turn.refused:
            raise UserError(f"{answer.turn.reason}, so it would wait forever; ask for less, or for a larger quota")
        if request is not None:
            request(answer.demand)
        return answer.turn

    def claim(self) -> int:
        """Hold all slots that the queue grants now, and return their number; `hold` gives back what is not used."""
        with self._lock:
            self._change(holds=max(self.peek(), self._ticket.holds))
            return self._ticket.holds

    def peek(self) -> int:
        """Return how many slots could be held now; others may take them in the next moment."""
        import ray

        with self._lock:
            self._change(most=self._most)
            try:
                return self._ask_now().turn.slots
            except ray.exceptions.RayError:  # nothing new for the moment
                return self._ticket.holds
            finally:
                self._change(most=self._most if self._ticket.shares else self._ticket.holds)

    def hold(self, slots: int) -> None:
        """Keep so many slots, and give back the others."""
        self._change(holds=slots, kept=0, most=self._most if self._ticket.shares else slots)

    @property
    def holds(self) -> int:
        """Slots that are held."""
        return self._ticket.holds

    def begin_trial(self, running: int) -> bool:
        """Return whether a search may begin one more trial beside those that run; its slots are then held."""
        step = self._ticket.step
        with self._lock:
            if running and time.monotonic() - self._asked > POLL_SECONDS / 4:
                self.hold(running * step)
                self.peek()
            may_begin = running == 0 or (running + 1) * step <= self._slots
            self.hold(max(1, running + may_begin) * step)
        return may_begin

    def end_trial(self, running: int) -> None:
        """Give back the slots of a trial that has ended; those of one trial are kept until the search ends."""
        self.hold(max(1, running) * self._ticket.step)

    def _change(self, **fields: Any) -> None:
        with self._lock:
            self._ticket = replace(self._ticket, **fields)

    def _ask_now(self) -> Answer:
        with self._lock:
            answer = self._ask(self._ticket)
            self._asked = time.monotonic()
            self._slots = answer.turn.slots
            self._ticket = replace(self._ticket, arrival=answer.arrival)
            return answer


@contextmanager
def join_queue(ticket: Ticket, on_event: Callable[..., object]) -> Iterator[Admission]:
    """Yield a ticket's admission to the cluster that this process is connected to."""
    import ray

    queue: list[Any] = [start_queue()]

    def ask(sent: Ticket) -> Answer:
        try:
            answer: Answer = ray.get(queue[-1].ask.remote(sent), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayActorError:
            queue[:] = [start_queue()]  # for the next time
            raise
        return answer

    def leave(id: str) -> None:
        ray.get(queue[-1].leave.remote(id), timeout=LEAVE_SECONDS)

    on_event("queued", user=ticket.user, project=ticket.project)  # who the hours of this run are counted for
    with Admission(ticket, ask, leave, on_event) as admission:
        yield admission
