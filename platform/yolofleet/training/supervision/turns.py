"""Whose turn it is on a cluster that several drivers share: pure functions of tickets, nodes and quotas.

Tickets take their turn by priority, then by arrival. Room is what Ray has free, less what other tickets were granted
and have not occupied yet. A ticket that does not fit keeps every node that it may use from later tickets: it is not
overtaken there, gets its room as soon as enough is free, and starves only if what runs before it never ends. Where a
quota or a missing node holds a ticket back, it keeps nothing from others. Tickets that have what they need grow last,
into room that nobody waits for. A search (`Ticket.shares`) has to come down to its share while others wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from yolofleet.core.text import and_more, plural
from yolofleet.specs.cluster import QuotaSpec
from yolofleet.training.supervision.nodes import NodeOffer

MOST_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Ticket:
    """What one driver asks for. It sends it with each poll, so a queue without a memory needs no other source."""

    id: str
    """URL of its run, and which holder of the run's lock it is."""
    name: str
    """Name of the run or search."""
    user: str
    project: str | None = None
    priority: int = 0
    arrival: float = 0.0
    """When it was sent or first asked, in seconds since 1970; 0: now."""
    wanted: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    """Resources of one slot, a worker's."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that a node must have."""
    placement: str = "PACK"
    fewest: int = 1
    """Slots without which it cannot start."""
    most: int = 1
    """Slots that it can use now."""
    step: int = 1
    """Slots by which it grows and shrinks: the workers of one trial."""
    holds: int = 0
    """Slots that it was granted and keeps."""
    waits: bool = False
    """Whether it needs its fewest slots before it starts."""
    shares: bool = False
    """Whether it gives slots back while others wait, as a search does at the end of each trial segment."""
    ray_job: str = ""
    """Ray's id of its driver, by which its placement groups are found."""


@dataclass(frozen=True)
class Node:
    """A node that stays: what it has, and what Ray has not given away."""

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """The answer to a ticket."""

    slots: int
    """Slots that it may use now, those that it holds included; fewer than it holds: it has to give some back."""
    reason: str | None = None
    """Why it waits; None: it does not."""
    lacks_nodes: bool = False
    """Whether even all of the cluster has no room for its fewest slots."""
    refused: bool = False
    """Whether its quota will never let it start."""


@dataclass(frozen=True)
class Spent:
    """The GPU hours that were used lately."""

    hours: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By ("user" or "project", its name)."""
    days: float = 0.0
    """How far they reach back."""
    problem: str | None = None
    """Why they are not known; who has a quota of them waits meanwhile."""


class Room:
    """The free resources of the nodes, while turns are given out."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._free = [dict(node.free) for node in nodes]

    def counts(self, ticket: Ticket) -> list[int]:
        """Return how many slots of the ticket each node has room for."""
        offers = (NodeOffer(free, labels=node.labels) for free, node in zip(self._free, self._nodes, strict=True))
        counts = [offer.slots(ticket.wanted, ticket.labels) for offer in offers]
        if ticket.placement == "STRICT_SPREAD":
            return [min(count, 1) for count in counts]
        if ticket.placement == "STRICT_PACK":
            best = max(counts, default=0)
            return [best if index == counts.index(best) else 0 for index in range(len(counts))]
        return counts

    def slots(self, ticket: Ticket) -> int:
        """Return how many slots of the ticket have room."""
        return sum(self.counts(ticket))

    def take(self, ticket: Ticket, number: int) -> int:
        """Take up to so many slots, from the fullest nodes first as Ray packs them; returns how many there were."""
        counts, left = self.counts(ticket), number
        for index in sorted((index for index, count in enumerate(counts) if count), key=counts.__getitem__):
            taken = min(left, counts[index])
            for kind, amount in ticket.wanted.items():
                self._free[index][kind] = self._free[index].get(kind, 0.0) - taken * amount
            left -= taken
        return number - left

    def withdraw(self, ticket: Ticket) -> None:
        """Keep every node that the ticket may ever use from those that come after it."""
        for index, count in enumerate(total_slots(ticket, self._nodes)):
            if count:
                self._free[index] = {}


def total_slots(ticket: Ticket, nodes: Sequence[Node]) -> list[int]:
    """Return how many slots of the ticket each node would have room for if it were empty."""
    return [NodeOffer(node.total, labels=node.labels).slots(ticket.wanted, ticket.labels) for node in nodes]


def compete(one: Ticket, other: Ticket, nodes: Sequence[Node]) -> bool:
    """Return whether two tickets may use the same node."""
    pairs = zip(total_slots(one, nodes), total_slots(other, nodes), strict=True)
    return one.id != other.id and any(mine and yours for mine, yours in pairs)


def in_order(tickets: Sequence[Ticket]) -> list[Ticket]:
    """Return the tickets in the order of their turns."""
    return sorted(tickets, key=lambda ticket: (-ticket.priority, ticket.arrival, ticket.id))


def decide(
    tickets: Sequence[Ticket],
    nodes: Sequence[Node],
    occupied: Mapping[str, int],
    quotas: QuotaSpec | None = None,
    spent: Spent | None = None,
) -> dict[str, Turn]:
    """Return the turn of each ticket, by its id.

    Args:
        tickets: Those of all drivers that live.
        nodes: The nodes that stay.
        occupied: Slots that Ray has given to each ticket's driver, by the ticket's id.
        quotas: What users and projects may have.
        spent: What they have used of their GPU hours.
    """
    tickets = in_order(tickets)
    room, usage = Room(nodes), _Usage(quotas or QuotaSpec(), spent or Spent(), tickets)
    for ticket in tickets:
        room.take(ticket, max(0, ticket.holds - occupied.get(ticket.id, 0)))
    slots, turns, blocked = {ticket.id: ticket.holds for ticket in tickets}, dict[str, Turn](), list[Ticket]()
    for ticket in (ticket for ticket in tickets if ticket.waits):
        allowed, quota = usage.allowed(ticket)
        if allowed < ticket.fewest:
            turns[ticket.id] = Turn(0, f"{_needs(ticket)}: {quota}", refused=usage.most(ticket) < ticket.fewest)
        elif (whole := sum(total_slots(ticket, nodes))) < ticket.fewest:
            turns[ticket.id] = Turn(0, f"{_needs(ticket)}, and all nodes have room for {whole}", lacks_nodes=True)
        elif room.slots(ticket) >= ticket.fewest:
            slots[ticket.id] = room.take(ticket, ticket.fewest)
            usage.add(ticket, ticket.fewest)
        else:
            turns[ticket.id] = Turn(0, _reason(ticket, tickets, nodes, slots, blocked))
            blocked.append(ticket)
            room.withdraw(ticket)
    for ticket in (ticket for ticket in tickets if ticket.id not in turns):
        has, most = slots[ticket.id], min(ticket.most, slots[ticket.id] + usage.allowed(ticket)[0])
        if ticket.shares:
            most = min(most, _share(ticket, tickets, nodes, slots, blocked))
            has = min(has, max(most, ticket.step))
        steps = max(0, min((most - has) // ticket.step, room.slots(ticket) // ticket.step))
        grown = room.take(ticket, steps * ticket.step)
        usage.add(ticket, grown)
        turns[ticket.id] = Turn(has + grown)
    return turns


def _share(
    ticket: Ticket, tickets: Sequence[Ticket], nodes: Sequence[Node], slots: Mapping[str, int], blocked: list[Ticket]
) -> int:
    """Return the most slots of a search: an equal part of the nodes that it may use while another lacks its own."""
    rivals = [other for other in tickets if compete(ticket, other, nodes)]
    whole_steps = sum(total_slots(ticket, nodes)) // (1 + len(rivals)) // ticket.step
    share = max(1, whole_steps) * ticket.step
    waiting = any(other in blocked and other.priority >= ticket.priority for other in rivals)
    lacking = any(other.shares and slots[other.id] < min(other.most, share) for other in rivals)
    return share if waiting or lacking else ticket.most


def _needs(ticket: Ticket) -> str:
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in ticket.wanted.items())
    return f"it needs {plural(ticket.fewest, 'slot')} of {each}"


def _reason(
    ticket: Ticket, tickets: Sequence[Ticket], nodes: Sequence[Node], slots: Mapping[str, int], blocked: list[Ticket]
) -> str:
    """Return what a ticket that does not fit needs, what is free, who holds the rest and who is before it."""
    rivals = [other for other in tickets if compete(ticket, other, nodes)]
    holders = [f"{other.name} of {other.user} ({slots[other.id]})" for other in rivals if slots[other.id]]
    before = [f"{other.name} of {other.user}" for other in rivals if other in blocked]
    held = and_more(holders, MOST_NAMES_SHOWN) or "work outside the queue"
    first = f"; before it {and_more(before, MOST_NAMES_SHOWN)}" if before else ""
    return f"{_needs(ticket)}, {Room(nodes).slots(ticket)} free; held by {held}{first}"


class _Usage:
    """What users and projects have, against their quotas."""

    def __init__(self, quotas: QuotaSpec, spent: Spent, tickets: Sequence[Ticket]) -> None:
        self._quotas = quotas
        self._spent = spent
        self._used: Counter[tuple[str, str, str]] = Counter()
        for ticket in tickets:
            self.add(ticket, ticket.holds)

    def add(self, ticket: Ticket, slots: int) -> None:
        """Count slots that a ticket gets."""
        for kind, amount in ticket.wanted.items():
            for scope, name, _ in self._quotas.limits(ticket.user, ticket.project, kind):
                self._used[scope, name, kind] += slots * amount  # type: ignore[assignment]  # amounts may be fractions

    def allowed(self, ticket: Ticket) -> tuple[int, str]:
        """Return how many more slots the quotas allow, and which quota is the narrowest."""
        for scope, name, hours in self._hour_limits(ticket):
            if self._spent.problem is not None:
                return 0, self._spent.problem
            if (used := self._spent.hours.get((scope, name), 0.0)) >= hours:
                allowed = f"{plural(hours, 'GPU hour', form='g')} that its quota allows"
                span = plural(self._spent.days, "day", form="g")
                return 0, f"{scope} {name} has used {used:.1f} of {allowed} in {span}"
        narrowest, reason = max(ticket.most, ticket.fewest), ""
        for kind, amount in ticket.wanted.items():
            for scope, name, limit in self._quotas.limits(ticket.user, ticket.project, kind):
                used = self._used[scope, name, kind]
                more = max(0, int((limit - used) / amount + 1e-9))
                if more < narrowest:
                    narrowest, reason = more, f"{scope} {name} has {used:g} of {limit:g} {kind} that its quota allows"
        return narrowest, reason

    def most(self, ticket: Ticket) -> int:
        """Return how many slots the quotas would allow if nothing else of the user and the project ran."""
        limits = [
            int(limit / amount + 1e-9)
            for kind, amount in ticket.wanted.items()
            for _, _, limit in self._quotas.limits(ticket.user, ticket.project, kind)
        ]
        limits += [0 for _, _, hours in self._hour_limits(ticket) if hours == 0]
        return min(limits, default=ticket.fewest)

    def _hour_limits(self, ticket: Ticket) -> list[tuple[str, str, float]]:
        """Return what limits the GPU hours of a ticket; nothing where it wants no GPU."""
        wants = ticket.wanted.get("GPU", 0.0) > 0
        return [*self._quotas.hour_limits(ticket.user, ticket.project)] if wants else []
