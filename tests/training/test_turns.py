"""Whose turn it is: in order, never more than there is, nobody for ever, within quotas, each search with its share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from yolofleet.specs.base import SpecError
from yolofleet.specs.cluster import QuotaSpec
from yolofleet.training.supervision.turns import Node, Spent, Ticket, Turn, compete, decide, in_order

MOST_ROUNDS = 400


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


works = st.lists(
    st.builds(
        lambda size, rounds, trials, priority: (size, rounds, trials, priority),
        st.integers(1, 4),
        st.integers(1, 5),
        st.integers(0, 6),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=6,
)


@given(works, st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_all_work_ends_in_order_and_never_uses_more_than_there_is(
    shapes: list[tuple[int, int, int, int]], cpus: list[int], data: st.DataObject
) -> None:
    nodes = [node(count) for count in cpus]
    waiting = []
    for index, (size, rounds, trials, priority) in enumerate(shapes):
        assume(size <= sum(cpus))
        is_search = trials > 0
        ticket = run(
            str(index),
            size,
            arrival=float(index),
            priority=priority,
            step=size if is_search else 1,
            most=sum(cpus) // size * size if is_search else size,
            shares=is_search,
        )
        waiting.append((data.draw(st.integers(0, 6)), Work(ticket, rounds, trials)))
    there: list[Work] = []
    for moment in range(MOST_ROUNDS):
        there += [work for begin, work in waiting if begin == moment]
        for ticket in in_order([work.ticket for work in there]):
            current = occupied_nodes(nodes, there)
            tickets = [work.ticket for work in there]
            turn = decide(tickets, current, {one.id: one.holds for one in tickets})[ticket.id]
            if ticket.waits and turn.slots:
                earlier = in_order(tickets)[: in_order(tickets).index(ticket)]
                assert not any(one.waits for one in earlier), "it overtook another"
            if not ticket.waits and not ticket.shares:
                assert turn.slots == ticket.holds
            next(work for work in there if work.ticket.id == ticket.id).take_turn(turn)
        there = [work for work in there if not work.work()]
        if not there and moment >= 6:
            return
    pytest.fail(f"these starve: {[work.ticket.name for work in there]}")


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


def test_the_first_one_that_does_not_fit_is_not_overtaken_where_it_may_run() -> None:
    first, small = run("first", 2, arrival=1.0), run("small", 1, arrival=2.0)
    holder = run("holder", 2, holds=2, waits=False)
    assert turns(holder, first, small, holder=2) == [2, 0, 0]
    elsewhere = replace(first, labels={"pool": "a"})
    nodes = [node(3, pool="a"), node(1, pool="b")]
    assert turns(holder, elsewhere, small, nodes=nodes, holder=2) == [2, 0, 1], "the other pool is no concern of it"


def test_a_priority_is_served_first_and_interrupts_nobody() -> None:
    low, high = run("low", 2, arrival=1.0), run("high", 2, arrival=2.0, priority=5)
    assert turns(low, high) == [0, 2]
    assert turns(replace(low, holds=2, waits=False), high, low=2) == [2, 0]


def test_what_was_granted_and_is_not_occupied_yet_is_not_given_twice() -> None:
    granted, other = run("granted", 2, holds=2, waits=False), run("other", 2, arrival=1.0)
    assert turns(granted, other, granted=0) == [2, 0]
    assert turns(granted, replace(other, fewest=1, most=1), granted=0) == [2, 1]


def test_a_run_grows_only_into_room_that_nobody_waits_for() -> None:
    elastic, other = run("elastic", 1, most=3, holds=1, waits=False), run("other", 2, arrival=9.0)
    assert turns(elastic, elastic=1) == [3]
    assert turns(elastic, other, elastic=1) == [1, 2]
    assert turns(elastic, replace(other, fewest=3, most=3), elastic=1) == [1, 0], "it is saved for the other"


@pytest.mark.parametrize(("wants", "share"), [(2, 1), (1, 1)])
def test_a_search_comes_down_to_its_share_while_another_waits(wants: int, share: int) -> None:
    search = run("search", 1, most=3, holds=3, waits=False, shares=True)
    assert turns(search, search=3) == [3]
    assert turns(search, run("run", wants, arrival=1.0), search=3) == [share, 0]
    assert turns(replace(search, priority=1), run("run", wants), search=3) == [3, 0], "not for a lower priority"


def test_two_searches_have_equal_shares() -> None:
    first = run("first", 1, most=4, holds=3, waits=False, shares=True)
    second = run("second", 1, most=4, holds=1, waits=False, shares=True, arrival=1.0)
    assert turns(first, second, nodes=[node(4)], first=3, second=1) == [2, 1]
    assert turns(replace(first, holds=2), second, nodes=[node(4)], first=2, second=1) == [2, 2]


def test_a_quota_holds_its_user_back_and_nobody_else() -> None:
    has = run("has", 2, holds=2, waits=False)
    more, other = run("more", 1, arrival=1.0), run("other", 1, arrival=2.0, user="bob")
    assert turns(has, more, other, quotas="users ada cpus 2", has=2) == [2, 0, 1]
    assert turns(has, more, other, quotas="users default cpus 3", has=2) == [2, 1, 0]
    assert turns(has, more, other, quotas="projects p cpus 2", has=2) == [2, 1, 0], "they are in no project"
    project = [replace(ticket, project="p") for ticket in (has, more, other)]
    assert turns(*project, quotas="projects p cpus 2", has=2) == [2, 0, 0]
    assert turns(replace(has, most=3), quotas="users ada cpus 2", has=2) == [2], "nor does it grow beyond it"


def test_reasons_say_what_is_needed_who_has_it_and_who_is_before() -> None:
    holder = run("small", 2, holds=2, waits=False, user="bob")
    first, second = run("ref", 2, arrival=1.0), run("other", 1, arrival=2.0, user="eve")
    given = decide([holder, first, second], [replace(node(3), free={"CPU": 1.0})], {"small": 2})
    assert given["ref"].reason == "it needs 2 slots of 1 CPU, 1 free; held by small of bob (2)"
    assert given["other"].reason == "it needs 1 slot of 1 CPU, 1 free; held by small of bob (2); before it ref of ada"
    quotas = QuotaSpec.parse({"users": {"ada": {"cpus": 1}}}, source="quotas.yaml")
    refused = decide([first], [node(3)], {}, quotas)["ref"]
    assert refused.refused and "user ada has 0 of 1 CPU that its quota allows" in str(refused.reason)
    gone = decide([first], [node(1)], {})["ref"]
    assert gone.lacks_nodes and "all nodes have room for 1" in str(gone.reason)


def test_a_ticket_that_lacks_nodes_keeps_nothing_from_others() -> None:
    assert turns(run("large", 4), run("small", 1, arrival=1.0)) == [0, 1]


@pytest.mark.parametrize(("placement", "expected"), [("PACK", 3), ("STRICT_SPREAD", 0), ("STRICT_PACK", 0)])
def test_strict_placements_need_their_nodes(placement: str, expected: int) -> None:
    assert turns(run("run", 3, placement=placement), nodes=[node(2), node(2)]) == [expected]


def test_gpu_and_cpu_work_on_other_nodes_do_not_compete() -> None:
    gpu, cpu = run("gpu", 1, wanted={"CPU": 1.0, "GPU": 1.0}), run("cpu", 1)
    nodes = [node(8, 1), node(4)]
    assert compete(gpu, cpu, nodes) and not compete(gpu, replace(cpu, labels={"pool": "cpu"}), nodes)
    busy = run("busy", 1, wanted={"CPU": 1.0, "GPU": 1.0}, holds=1, waits=False)
    assert turns(busy, gpu, replace(cpu, arrival=1.0), nodes=nodes, busy=1) == [1, 0, 1]


def test_used_up_gpu_hours_hold_back_who_wants_more_gpus_and_interrupt_nobody() -> None:
    document = {"users": {"default": {"gpu_hours": 100}}, "projects": {"p": {"gpu_hours": 0}}, "storages": ["runs"]}
    quotas = QuotaSpec.parse(document, source="quotas.yaml")
    gpu = {"CPU": 1.0, "GPU": 1.0}
    has = run("has", 1, most=3, holds=1, waits=False, wanted=gpu)
    more, cpu, other = run("more", 1, wanted=gpu), run("cpu", 1), run("other", 1, wanted=gpu, user="bob")

    def given(spent: Spent, *tickets: Ticket) -> dict[str, Turn]:
        return decide(tickets, [node(8, 4)], {"has": 1}, quotas, spent)

    over = given(Spent({("user", "ada"): 100.04}, 30), has, more, cpu, other)
    assert {name: turn.slots for name, turn in over.items()} == {"has": 1, "more": 0, "cpu": 1, "other": 1}
    assert "user ada has used 100.0 of 100 GPU hours that its quota allows in 30 days" in str(over["more"].reason)
    assert not over["more"].refused, "the window moves on"
    assert given(Spent({("user", "ada"): 99.9}, 30), has, more)["has"].slots == 3
    unknown = given(Spent(problem="cannot be read"), more, cpu)
    assert (unknown["more"].slots, unknown["cpu"].slots) == (0, 1) and "cannot be read" in str(unknown["more"].reason)
    assert given(Spent({}, 30), replace(more, project="p"))["more"].refused, "none is never enough"


def test_a_quota_of_hours_says_where_they_are_counted() -> None:
    with pytest.raises(SpecError, match=r"say where they are: storages: \[s3://runs\]"):
        QuotaSpec.parse({"users": {"ada": {"gpu_hours": 1}}}, source="quotas.yaml")


def test_a_quota_that_is_wrong_names_its_key() -> None:
    with pytest.raises(SpecError, match=r"quotas\.yaml: users\.ada\.gpu: unknown key .* did you mean 'gpus'"):
        QuotaSpec.parse({"users": {"ada": {"gpu": 1}}}, source="quotas.yaml")
