"""Nodes, tickets, the work of drivers and a cluster with a queue, for tests of whose turn it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from yolofleet.specs.cluster import QuotaSpec
from yolofleet.training.supervision.queue import SETTLE_SECONDS, ClusterView, TicketQueue
from yolofleet.training.supervision.turns import Node, Ticket, Turn, decide

SPOT, STAYS = {"spot": "yes"}, {"spot": "no"}


def node(cpus: int, gpus: int = 0, **labels: str) -> Node:
    total = {"CPU": float(cpus), "GPU": float(gpus)}
    return Node(f"node-{cpus}-{gpus}", total, dict(total), labels)


def run(name: str, workers: int, **fields: object) -> Ticket:
    given = {"user": "ada", "fewest": workers, "most": workers, "waits": True, **fields}
    return Ticket(name, name, **given)  # type: ignore[arg-type]


@dataclass
class Work:
    """A run of some rounds, or a search of some trials of some rounds, as its driver would ask for it."""

    ticket: Ticket
    rounds: int
    trials: int = 0
    running: list[int] = field(default_factory=list)
    """Rounds left of each trial."""

    def take_turn(self, turn: Turn) -> None:
        """Start what the turn allows."""
        step = self.ticket.step
        if self.ticket.waits and turn.slots < self.ticket.fewest:
            return
        if self.ticket.shares:
            while self.trials and (len(self.running) + 1) * step <= turn.slots:
                self.trials -= 1
                self.running.append(self.rounds)
        elif self.ticket.waits:
            self.running = [self.rounds]
        used = max(1, len(self.running)) * step if self.ticket.shares else self.ticket.fewest
        self.ticket = replace(self.ticket, waits=False, holds=used)

    def work(self) -> bool:
        """Let a round pass; returns whether it is over."""
        if self.ticket.waits:
            return False
        self.running = [left - 1 for left in self.running if left > 1]
        if self.ticket.shares:
            self.ticket = replace(self.ticket, holds=max(1, len(self.running)) * self.ticket.step)
        return not self.running and not self.trials


def occupied_nodes(nodes: list[Node], works: list[Work]) -> list[Node]:
    """The nodes with what the works use taken from them; fails where there is less."""
    free = [dict(one.total) for one in nodes]
    for work in works:
        for _ in range(work.ticket.holds):
            fits = [one for one in free if all(one[kind] >= amount for kind, amount in work.ticket.wanted.items())]
            assert fits, f"{work.ticket.name} was given more than there is"
            for kind, amount in work.ticket.wanted.items():
                fits[0][kind] -= amount
    return [replace(one, free=left) for one, left in zip(nodes, free, strict=True)]


def turns(*tickets: Ticket, nodes: list[Node] | None = None, quotas: str | None = None, **occupied: int) -> list[int]:
    """The slots of each ticket, in the order given; the free resources are those that nobody occupies."""
    nodes = nodes or [node(3)]
    left = occupied_nodes(nodes, [Work(replace(t, holds=occupied.get(t.id, 0)), 1) for t in tickets])
    spec = QuotaSpec.parse(quota(quotas), source="quotas.yaml") if quotas else None
    given = decide(tickets, left, occupied, spec)
    return [given[ticket.id].slots for ticket in tickets]


def quota(text: str) -> dict[str, object]:
    """``users ada gpus 2`` as a document."""
    scope, name, kind, amount = text.split()
    return {scope: {name: {kind: float(amount)}}}


class Cluster:
    """One node of three CPUs, whose workers are placed at once, and a clock that only the tests move."""

    def __init__(self, cpus: int = 3, quotas: Callable[[], QuotaSpec] = QuotaSpec) -> None:
        self.now = 1000.0
        self.cpus = cpus
        self.used: dict[str, int] = {}
        self.quotas = quotas
        self.restart_queue()

    def restart_queue(self) -> None:
        self.queue = TicketQueue(self.view, self.quotas, lambda: self.now)

    def settle(self) -> None:
        """Let the time go by in which a queue only listens; it begins with the first ticket, which is taken back."""
        self.queue.ask(ticket("settling", 1))
        self.queue.leave("settling")
        self.now += SETTLE_SECONDS

    def view(self) -> ClusterView:
        free = {"CPU": float(self.cpus - sum(self.used.values()))}
        bundles = {job: [{"CPU": 1.0}] * count for job, count in self.used.items()}
        return ClusterView([Node("here", {"CPU": float(self.cpus)}, free)], bundles)

    def slots(self, name: str, workers: int, **fields: Any) -> int:
        """What the queue answers to a ticket."""
        return self.queue.ask(ticket(name, workers, **fields)).turn.slots


def ticket(name: str, workers: int, **fields: Any) -> Ticket:
    waits = "holds" not in fields
    given = {"user": "ada", "fewest": workers, "most": workers, "waits": waits, "ray_job": name, **fields}
    return Ticket(name, name, **given)
