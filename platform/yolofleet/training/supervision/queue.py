"""The queue of a cluster that several drivers share: who may use free room, in which order, and what each waits for.

One named actor holds the drivers' tickets and answers whose turn it is (`turns`). It has no other state: each driver
sends its ticket every two seconds, so a queue that was lost is whole again after that time, and the ticket of a driver
that died is forgotten after `LEASE_SECONDS`. Ray still schedules everything; the queue only says when to ask it. A Ray
of this machine's own has no queue.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.ray_runtime import HEAD_RESOURCE
from yolofleet.specs.cluster import QuotaSpec
from yolofleet.training.supervision.nodes import free_resources, staying_nodes
from yolofleet.training.supervision.placement_groups import REMOVED, list_placement_groups
from yolofleet.training.supervision.turns import Node, Spent, Ticket, Turn, decide
from yolofleet.training.supervision.usage import Ledger

NAME, NAMESPACE = "queue-1", "yolofleet"
"""The number is that of the protocol: drivers of versions that do not understand each other have two queues."""
QUOTAS_VARIABLE = "YOLOFLEET_QUOTAS"
"""Names the file of the quotas (YAML), in the environment of the head node."""
LEASE_SECONDS = 60.0
"""A driver that has not sent its ticket for so long is dead."""
SETTLE_SECONDS = 5.0
"""How long a queue that has just started only listens, from its first ticket on: drivers that waited at the one before
are ahead, and each has time for a second try where the first met no queue."""


@dataclass(frozen=True)
class Answer:
    """What the queue answers to a ticket."""

    turn: Turn
    arrival: float
    """When the ticket came, which its driver repeats from now on."""
    demand: list[dict[str, float]]
    """The resources of all slots that are held or waited for, for an autoscaler."""
    problem: str | None = None
    """Why the queue cannot work: the file of its quotas."""


@dataclass(frozen=True)
class ClusterView:
    """What Ray says of the cluster at one moment."""

    nodes: list[Node]
    bundles: dict[str, list[dict[str, float]]]
    """Resources of each bundle of a placement group that Ray has placed, by the driver's Ray job."""

    def occupied(self, ticket: Ticket) -> int:
        """Return how many slots of a ticket Ray has given to its driver."""
        bundles = self.bundles.get(ticket.ray_job, [])
        return sum(all(bundle.get(kind, 0) >= amount for kind, amount in ticket.wanted.items()) for bundle in bundles)


def view_cluster() -> ClusterView:
    """Ask Ray for the nodes that stay, what they have free, and which bundles are placed."""
    free, bundles = free_resources(), dict[str, list[dict[str, float]]]()
    placed: defaultdict[str, dict[str, list[dict[str, float]]]] = defaultdict(dict)
    for group in (group for group in list_placement_groups() if group.state != REMOVED):
        for node_id, bundle in group.placed:
            bundles.setdefault(group.job, []).append(bundle)
            placed[node_id].setdefault(group.job, []).append(bundle)
    nodes = [
        Node(node["NodeManagerAddress"], node["Resources"], free.get(id, {}), node.get("Labels") or {}, placed[id])
        for node in staying_nodes()
        for id in (node["NodeID"],)
    ]
    return ClusterView(nodes, bundles)


class TicketQueue:
    """The tickets of the drivers that live.

    Args:
        view: Looks at the cluster.
        quotas: Reads the quotas.
        clock: Seconds since 1970; None: the system's, and for how long something takes one that is never set.
        spent: Says how many GPU hours were used.
    """

    def __init__(
        self,
        view: Callable[[], ClusterView] = view_cluster,
        quotas: Callable[[], QuotaSpec] | None = None,
        clock: Callable[[], float] | None = None,
        spent: Callable[[QuotaSpec], Spent] | None = None,
    ) -> None:
        self._view = view
        self._quotas = quotas or read_quotas
        self._clock = clock or time.time
        self._elapsed = clock or time.monotonic
        self._spent = spent or Ledger(clock=self._clock).look
        self._first_asked: float | None = None
        self._tickets: dict[str, Ticket] = {}
        self._seen: dict[str, float] = {}
        self._granted: dict[str, int] = {}
        self._deaf_seconds = 0.0
        """How long it took to answer so far, in which no other driver was heard."""

    def ask(self, ticket: Ticket) -> Answer:
        """Take a driver's ticket, and answer what it may use now."""
        began = self._elapsed()
        try:
            return self._answer(ticket, began - self._deaf_seconds)
        finally:
            self._deaf_seconds += self._elapsed() - began

    def _answer(self, ticket: Ticket, now: float) -> Answer:
        if self._first_asked is None:
            self._first_asked = now
        known, sent = self._tickets.get(ticket.id), self._clock()
        arrival = known.arrival if known is not None else min(ticket.arrival or sent, sent)
        ticket = replace(ticket, arrival=arrival)
        for id in [id for id, seen in self._seen.items() if now - seen > LEASE_SECONDS]:
            self.leave(id)
        self._tickets[ticket.id], self._seen[ticket.id] = ticket, now
        try:
            quotas = self._quotas()
        except UserError as error:
            return Answer(Turn(ticket.holds), ticket.arrival, [], str(error))
        if now - self._first_asked < SETTLE_SECONDS:
            return Answer(Turn(ticket.holds), ticket.arrival, [])
        view = self._view()
        tickets = [ticket, *(self._as_granted(other) for id, other in self._tickets.items() if id != ticket.id)]
        occupied = {other.id: view.occupied(other) for other in tickets}
        turn = decide(tickets, view.nodes, occupied, quotas, self._spent(quotas))[ticket.id]
        self._granted[ticket.id] = turn.slots
        demand = [dict(other.wanted) for other in tickets for _ in range(max(other.holds, other.fewest * other.waits))]
        return Answer(turn, ticket.arrival, demand)

    def leave(self, id: str) -> None:
        """Forget a ticket."""
        for table in (self._tickets, self._seen, self._granted):
            table.pop(id, None)

    def _as_granted(self, ticket: Ticket) -> Ticket:
        """Return another driver's ticket as it will be: what it was granted when it asked last is in use, or soon."""
        granted = self._granted.get(ticket.id, 0)
        return replace(ticket, holds=max(ticket.holds, granted), waits=ticket.waits and not granted)


def read_quotas() -> QuotaSpec:
    """Return the quotas in the file that this process's environment names; none where it names no file.

    Raises:
        UserError: The file cannot be read, or a key or value does not fit.
    """
    path = os.environ.get(QUOTAS_VARIABLE)
    return QuotaSpec() if not path else QuotaSpec.load(path)


def start_queue() -> Any:
    """Return the handle of the cluster's queue; the first driver starts it, on the head node, where it stays."""
    import ray

    actor = ray.remote(num_cpus=0, max_restarts=-1, resources={HEAD_RESOURCE: 0.001})(TicketQueue)
    return actor.options(name=NAME, namespace=NAMESPACE, get_if_exists=True, lifetime="detached").remote()
