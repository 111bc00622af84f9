"""Whose turn it is: in order, never more than there is, nobody for ever, within quotas, each search with its share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from training.tickets import Work, node, occupied_nodes, run, turns
from yolofleet.specs.base import SpecError
from yolofleet.specs.cluster import QuotaSpec
from yolofleet.training.supervision.turns import Spent, Ticket, Turn, compete, decide, in_order

MOST_ROUNDS = 400


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


def test_a_run_that_starts_again_keeps_the_room_that_it_had() -> None:
    again = run("again", 1, most=2, kept=2, arrival=9.0)
    high, same = run("high", 2, priority=5), run("same", 1, arrival=1.0)
    assert turns(again, high, same) == [2, 0, 0]
    assert turns(again, replace(high, fewest=1), quotas="users ada cpus 2") == [2, 0], "so does its share of a quota"
    assert turns(again, replace(high, user="bob"), nodes=[node(2)]) == [2, 0]
    grown = replace(again, fewest=3, most=3, kept=3)
    assert turns(grown, high, same, nodes=[node(2)]) == [0, 2, 0], "unless it lacks nodes"
    away = replace(grown, holds=3, kept=0, waits=False)
    assert turns(away, high, same, nodes=[node(2)]) == [0, 2, 0], "and from when they are lost"
    asked = decide([again], [replace(node(2), free={})], {"again": 2})["again"].reason
    assert asked == "it needs 1 slot of 1 CPU, 0 free; held by its own workers, which are ending (2)"


def test_a_run_that_has_not_asked_for_its_turn_has_none() -> None:
    assert turns(run("checks", 1, waits=False), run("other", 2, arrival=1.0)) == [0, 2]


def test_who_only_comes_after_another_is_not_said_to_wait_for_other_work() -> None:
    nodes = [node(2, pool="a"), replace(node(2, pool="b"), free={"CPU": 0.0})]
    holder = run("holder", 2, holds=2, waits=False, labels={"pool": "b"})
    large, small = run("large", 4), run("small", 1, arrival=1.0, labels={"pool": "a"})
    given = decide([holder, large, small], nodes, {"holder": 2})
    assert given["small"].reason == "it needs 1 slot of 1 CPU, 2 free; before it large of ada"


@pytest.mark.parametrize(
    ("fields", "quotas", "slots"),
    [
        ({}, None, 4),
        ({"user": "bob"}, "users bob cpus 4", 4),
        ({"user": "bob"}, "users bob cpus 0", 8),
        ({"user": "bob", "waits": False, "holds": 1}, "users bob cpus 1", 7),
        ({}, "users ada cpus 8", 4),  # they share a quota: what it gives back, the other may have
        ({"priority": -1}, None, 8),
        ({"labels": {"pool": "none"}}, None, 8),
        ({"fewest": 9, "step": 9, "most": 9}, None, 8),
        ({"waits": False, "holds": 3, "step": 3, "most": 6}, None, 5),  # a step more would be beyond its share
    ],
)
def test_a_search_comes_down_for_another_that_can_use_what_it_gives_back(
    fields: dict[str, object], quotas: str | None, slots: int
) -> None:
    other = run("other", 1, arrival=1.0, **{"most": 8, "shares": True, **fields})
    search = run("search", 1, most=8, holds=8 - other.holds, waits=False, shares=True)
    assert turns(search, other, nodes=[node(8)], quotas=quotas, search=search.holds, other=other.holds)[0] == slots


def test_a_search_has_an_equal_part_of_what_those_who_can_work_use() -> None:
    search = run("search", 1, most=8, holds=8, waits=False, shares=True)
    waits, low = run("waits", 1, user="bob"), [run(f"low-{index}", 1, priority=-1) for index in range(5)]
    held = [run(f"held-{index}", 1, user="eve") for index in range(5)]
    given = turns(search, waits, *low, *held, nodes=[node(8)], quotas="users eve cpus 0", search=8)
    assert given[0] == 4, "half"


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


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(0, 1), st.integers(0, 9)), max_size=4),
)
def test_searches_leave_no_room_idle_that_one_of_them_may_use(
    cpus: list[int], drawn: list[tuple[int, int, int, int]]
) -> None:
    nodes = [node(count) for count in cpus]
    document = {"users": {str(index): {"cpus": limit} for index, (*_, limit) in enumerate(drawn)}}
    quotas = QuotaSpec.parse(document, source="quotas.yaml")
    tickets = [
        run(str(index), step, step=step, most=step * trials, priority=priority, user=str(index), shares=True)
        for index, (step, trials, priority, _) in enumerate(drawn)
    ]
    for _ in range(MOST_ROUNDS):
        before = list(tickets)
        for index, ticket in enumerate(tickets):
            works = [Work(one, 1) for one in tickets]
            turn = decide(tickets, occupied_nodes(nodes, works), {one.id: one.holds for one in tickets}, quotas)
            slots = turn[ticket.id].slots
            if slots or not ticket.waits:
                tickets[index] = replace(ticket, waits=False, holds=slots)
        if tickets == before:
            break
    else:
        pytest.fail("they never settle")
    idle = sum(cpus) - sum(one.holds for one in tickets)
    waits = any(one.waits and one.step <= min(int(document["users"][one.user]["cpus"]), sum(cpus)) for one in tickets)
    for one in tickets:
        most = min(one.most, document["users"][one.user]["cpus"] // one.step * one.step)
        assert waits or one.holds >= most or idle < max(other.step for other in tickets), "room is idle"
