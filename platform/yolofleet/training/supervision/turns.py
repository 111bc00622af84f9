"""Whose turn it is on a cluster that several drivers share: pure functions of tickets, nodes and quotas.

Tickets take their turn by priority, then by arrival. Room is what Ray has free, less what other tickets were granted
and have not occupied yet. A ticket that does not fit keeps every node that it may use from later tickets: it is not
overtaken there, gets its room as soon as enough is free, and starves only if what runs before it never ends. Where a
quota or a missing node holds a ticket back, it keeps nothing from others. A run that starts again has the room that it
had before all others. Tickets that have what they need grow last, into room that nobody waits for. A search
(`Ticket.shares`) has to come down to its share while others wait that can use what it gives back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from yolofleet.core.text import and_more, plural
from yolofleet.specs.cluster import QuotaSpec
from yolofleet.training.supervision.group_room import STRICT, GroupRoom, group_room
from yolofleet.training.supervision.nodes import NodeOffer
from yolofleet.training.supervision.quota_use import QuotaUse

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
    # Drivers of earlier versions send none of these, so each has a default that is no factory.
    first_labels: Mapping[str, str] | None = None
    """Further labels of the first worker's node."""
    beside: int = 0
    """Slots among its fewest that may be on any node: the evaluation's."""
    kept: int = 0
    """Slots that it held when its workers ended, if it waits to start them again."""


@dataclass(frozen=True)
class Node:
    """A node that stays: what it has, and what Ray has not given away."""

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    placed: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    """Resources of each bundle that Ray has placed here, by the Ray job of its driver."""


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
        self._taken: dict[str, Counter[int]] = {}

    def group(self, ticket: Ticket) -> GroupRoom:
        """Return the room for one group of the ticket's workers."""
        offers = [NodeOffer(free, labels=node.labels) for free, node in zip(self._free, self._nodes, strict=True)]
        return group_room(offers, ticket.wanted, ticket.labels, ticket.first_labels or {}, ticket.placement)

    def slots(self, ticket: Ticket) -> int:
        """Return how many slots of the ticket have room: one group, or of a search as many as there are."""
        group = self.group(ticket)
        if ticket.shares:
            return min(sum(group.counts), sum(group.firsts) * ticket.step)
        return group.slots(ticket.beside)

    def take(self, ticket: Ticket, number: int) -> int:
        """Take up to so many slots, from the fullest nodes first as Ray packs them; returns how many there were."""
        if not number:
            return 0
        group, taken, left = self.group(ticket), Counter[int](), number
        order = sorted(range(len(self._nodes)), key=group.counts.__getitem__)
        groups = number // ticket.step if ticket.shares else 1
        for counts, most in ((group.firsts, groups), (group.together, number), (group.counts, ticket.beside)):
            for index in order:
                more = max(0, min(counts[index] - taken[index], most, left))
                taken[index], most, left = taken[index] + more, most - more, left - more
        for index, count in taken.items():
            for kind, amount in ticket.wanted.items():
                self._free[index][kind] = self._free[index].get(kind, 0.0) - count * amount
        self._taken.setdefault(ticket.id, Counter()).update(taken)
        return number - left

    def more(self, ticket: Ticket, has: int) -> int:
        """Return how many slots a ticket could have beside those that it has."""
        if ticket.shares:
            return self.slots(ticket)
        if ticket.placement not in STRICT:  # its first worker has a node
            return sum(self.group(ticket).counts)
        return max(0, self._with_slots_of(ticket).slots(ticket) - has)

    def _with_slots_of(self, ticket: Ticket) -> Room:
        """Return the room as it is once a run has ended its workers, which it does to start more of them."""
        nodes = []
        for index, node in enumerate(self._nodes):
            free, taken = dict(self._free[index]), self._taken.get(ticket.id, Counter())[index]
            for bundle in (*node.placed.get(ticket.ray_job, ()), *[ticket.wanted] * taken):
                for kind, amount in bundle.items():
                    free[kind] = free.get(kind, 0.0) + amount
            nodes.append(replace(node, free=free))
        return Room(nodes)

    def withdraw(self, ticket: Ticket) -> None:
        """Keep every node that the ticket may ever use from those that come after it."""
        for index, count in enumerate(total_slots(ticket, self._nodes)):
            if count:
                self._free[index] = {}


def total_slots(ticket: Ticket, nodes: Sequence[Node]) -> list[int]:
    """Return how many slots of the ticket each node would have room for if it were empty; none where it never has."""
    labels = {**ticket.labels, **(ticket.first_labels or {})}
    is_on_one = ticket.placement == "STRICT_PACK" and not ticket.beside
    counts = []
    for offer in (NodeOffer(node.total, labels=node.labels) for node in nodes):
        first = offer.slots(ticket.wanted, labels)
        count = first if is_on_one else offer.slots(ticket.wanted, ticket.labels) or min(first, 1)
        counts.append(0 if is_on_one and count < ticket.fewest else count)
    return counts


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
    empty = Room([replace(node, free=node.total) for node in nodes])
    # Where no node is one for a first worker, each trial of a search asks for it itself.
    tickets = [replace(one, first_labels=None) if one.shares and not empty.slots(one) else one for one in tickets]
    tickets, whole = in_order(tickets), {one.id: empty.slots(one) for one in tickets}
    room, usage = Room(nodes), QuotaUse(quotas or QuotaSpec(), spent or Spent())
    slots, turns, blocked = dict[str, int](), dict[str, Turn](), list[Ticket]()
    for ticket in tickets:
        placed, held, kept = occupied.get(ticket.id, 0), ticket.holds, ticket.kept if ticket.waits else 0
        if whole[ticket.id] < min(ticket.fewest, held or kept):  # it waits for nodes, and keeps nothing meanwhile
            held, kept = min(held, placed), 0
            turns |= {} if ticket.waits else {ticket.id: Turn(held)}
        elif not ticket.waits and not held:  # it has not asked for its turn yet
            turns[ticket.id] = Turn(0)
        slots[ticket.id] = held
        usage.add(ticket, held + kept)
        room.take(_anywhere(ticket) if placed else ticket, max(0, held - placed))
    waiting = [ticket for ticket in tickets if ticket.waits]
    # A run that starts again keeps its room, whoever waits for it.
    for ticket in sorted(waiting, key=lambda one: not (one.kept and room.slots(one) >= one.fewest)):
        more, quota = usage.allowed(ticket)
        allowed = ticket.kept + more
        if allowed < ticket.fewest:
            turns[ticket.id] = Turn(0, f"{_needs(ticket)}: {quota}", refused=usage.most(ticket) < ticket.fewest)
        elif whole[ticket.id] < ticket.fewest:
            reason = f"{_needs(ticket)}, and all nodes have room for {whole[ticket.id]}"
            turns[ticket.id] = Turn(0, reason, lacks_nodes=True)
        elif room.slots(ticket) >= ticket.fewest:
            slots[ticket.id] = room.take(ticket, max(ticket.fewest, ticket.kept))
            usage.add(ticket, slots[ticket.id] - ticket.kept)
        else:
            rivals = [other for other in tickets if compete(ticket, other, nodes)]
            own = occupied.get(ticket.id, 0)
            turns[ticket.id] = Turn(0, _reason(ticket, Room(nodes).slots(ticket), own, rivals, slots, blocked))
            blocked.append(ticket)
            room.withdraw(ticket)
    for ticket in (ticket for ticket in tickets if ticket.id not in turns):
        has, most = slots[ticket.id], min(ticket.most, slots[ticket.id] + usage.allowed(ticket)[0])
        if ticket.shares:
            rivals = [other for other in tickets if compete(ticket, other, nodes)]
            most = min(most, _share(ticket, rivals, whole, slots, blocked, usage))
            has = min(has, max(most, ticket.step))
        steps = max(0, min(most - has, room.more(ticket, has)) // ticket.step)
        grown = room.take(ticket, steps * ticket.step)
        usage.add(ticket, grown)
        turns[ticket.id] = Turn(has + grown)
    return turns


def _anywhere(ticket: Ticket) -> Ticket:
    """Return the ticket for slots beside a group that runs, on any node; each trial of a search is a group."""
    return ticket if ticket.shares else replace(ticket, placement="PACK", first_labels=None)


def _share(
    ticket: Ticket,
    rivals: Sequence[Ticket],
    whole: Mapping[str, int],
    slots: Mapping[str, int],
    blocked: list[Ticket],
    usage: QuotaUse,
) -> int:
    """Return the most slots of a search: an equal part of the nodes that it may use while another lacks its own.

    Those of a lower priority do not count, nor those that a quota or missing nodes hold back: they would have nothing
    of it if the search gave back all that it has.
    """
    counted = list[tuple[Ticket, int]]()
    usage.add(ticket, -slots[ticket.id])
    for other in rivals:
        most = min(other.most, whole[other.id], slots[other.id] + usage.allowed(other)[0])
        if other.priority >= ticket.priority and (slots[other.id] or other in blocked or most >= other.fewest):
            counted.append((other, most))
    usage.add(ticket, slots[ticket.id])
    share = max(1, whole[ticket.id] // (1 + len(counted)) // ticket.step) * ticket.step
    is_waited_for = any(other in blocked for other, _ in counted)
    lacking = any(other.shares and slots[other.id] + other.step <= min(most, share) for other, most in counted)
    return share if is_waited_for or lacking else ticket.most


def _needs(ticket: Ticket) -> str:
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in ticket.wanted.items())
    how = f" with cluster.placement = {ticket.placement}" if ticket.placement in STRICT else ""
    first = f", the first one on a node labelled {dict(ticket.first_labels)}" if ticket.first_labels else ""
    return f"it needs {plural(ticket.fewest, 'slot')} of {each}{how}{first}"


def _reason(
    ticket: Ticket, free: int, own: int, rivals: Sequence[Ticket], slots: Mapping[str, int], blocked: list[Ticket]
) -> str:
    """Return what a ticket that does not fit needs, what is free, who holds the rest and who is before it."""
    holders = [f"{other.name} of {other.user} ({slots[other.id]})" for other in rivals if slots[other.id]]
    holders = [*([f"its own workers, which are ending ({own})"] if own else []), *holders]
    before = [f"{other.name} of {other.user}" for other in rivals if other in blocked]
    parts = [f"{_needs(ticket)}, {free} free"]
    if holders or free < ticket.fewest:
        parts.append(f"held by {and_more(holders, MOST_NAMES_SHOWN) or 'work outside the queue'}")
    if before:
        parts.append(f"before it {and_more(before, MOST_NAMES_SHOWN)}")
    return "; ".join(parts)
