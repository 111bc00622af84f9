"""A turn is given exactly where Ray can place the workers: strict placements, the first one's node, the evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.tickets import SPOT, STAYS, node, quota, run, turns
from yolofleet.specs.cluster import ClusterSpec, QuotaSpec
from yolofleet.training.supervision.nodes import NodeOffer, fits
from yolofleet.training.supervision.turns import Node, Ticket, compete, decide, in_order


@pytest.mark.parametrize(("placement", "expected"), [("PACK", 3), ("STRICT_SPREAD", 0), ("STRICT_PACK", 0)])
def test_strict_placements_need_their_nodes(placement: str, expected: int) -> None:
    assert turns(run("run", 3, placement=placement), nodes=[node(2), node(2)]) == [expected]


RUNS_ALONE: list[dict[str, object]] = [
    {"placement": "STRICT_SPREAD"},
    {"placement": "STRICT_PACK"},
    {"first_labels": STAYS, "fewest": 2},
]


@pytest.mark.parametrize("fields", RUNS_ALONE)
def test_a_placement_that_no_node_allows_lacks_nodes_and_blocks_nobody(fields: dict[str, object]) -> None:
    never = run("never", 3, **{"most": 3, **fields})
    search = run("search", 1, most=2, holds=2, waits=False, shares=True)
    nodes = [node(2, **SPOT), node(2, **SPOT)]
    assert turns(never, run("small", 2, arrival=1.0), search, nodes=nodes, search=2) == [0, 2, 2]
    turn = decide([never], nodes, {})["never"]
    assert turn.lacks_nodes and str(fields.get("placement", "labelled {'spot': 'no'}")) in str(turn.reason)


def test_the_first_worker_waits_for_room_on_a_node_of_its_own_kind() -> None:
    nodes = [node(1, **STAYS), node(4, **SPOT)]
    on_it = run("on_it", 1, holds=1, waits=False)
    first = run("first", 2, first_labels=STAYS)
    given = decide([on_it, first], [replace(nodes[0], free={"CPU": 0.0}), nodes[1]], {"on_it": 1})["first"]
    assert given.slots == 0 and not given.lacks_nodes
    needs = (
        "it needs 2 slots of 1 CPU, the first one on a node labelled {'spot': 'no'}, 0 free; held by on_it of ada (1)"
    )
    assert given.reason == needs
    assert decide([first, replace(first, id="next", arrival=1.0)], nodes, {})["next"].slots == 0, "there is one"
    grows = replace(first, most=5, holds=1, waits=False)
    assert decide([grows], [replace(nodes[0], free={"CPU": 0.0}), nodes[1]], {"first": 1})["first"].slots == 5
    search = replace(grows, step=2, most=4, fewest=2, holds=2, shares=True)
    assert decide([search], [replace(nodes[0], free={"CPU": 0.0}), nodes[1]], {"first": 2})["first"].slots == 2
    assert decide([replace(search, waits=True, holds=0)], nodes[1:], {})["first"].slots == 4, "a trial asks itself"


def test_only_nodes_that_a_ticket_can_use_are_kept_for_it() -> None:
    busy = replace(node(4), free={"CPU": 1.0})
    pack, small = run("pack", 3, placement="STRICT_PACK"), run("small", 1, arrival=1.0)
    assert decide([pack, small], [busy, node(2)], {})["small"].slots == 1
    assert decide([replace(pack, placement="PACK"), small], [busy, node(1)], {})["small"].slots == 0
    first = {"first_labels": STAYS}
    apart = run("apart", 2, beside=1, holds=2, waits=False, **first)
    given = decide([apart, run("first", 1, **first)], [node(1, **SPOT), node(1, **STAYS)], {"apart": 1})
    assert given["first"].slots == 1, "an evaluation needs no node of the first worker's kind"


def test_a_run_with_a_strict_placement_grows_as_it_could_start() -> None:
    spread = run("spread", 1, most=4, holds=1, waits=False, placement="STRICT_SPREAD", ray_job="7")
    nodes = [node(4), node(4), node(1)]
    taken = replace(nodes[2], free={"CPU": 0.0})
    assert decide([spread], [*nodes[:2], taken], {})["spread"].slots == 2, "between two starts"
    placed = replace(nodes[0], free={"CPU": 3.0}, placed={"7": [{"CPU": 1.0}]})
    assert decide([spread], [placed, nodes[1], taken], {"spread": 1})["spread"].slots == 2
    assert decide([spread], [placed, taken], {"spread": 1})["spread"].slots == 1, "no second one beside the first"
    pack = replace(spread, placement="STRICT_PACK", most=8)
    assert decide([pack], [placed, replace(node(5), free={"CPU": 2.0})], {"spread": 1})["spread"].slots == 4
    assert decide([replace(pack, holds=2)], [node(4)], {})["spread"].slots == 4, "between two starts"
    apart = replace(spread, fewest=3, most=3, beside=1, holds=0, waits=True)
    assert decide([apart], nodes[:2], {})["spread"].slots == 3, "the evaluation may be beside a worker"


small_nodes = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()).map(
        lambda drawn: replace(
            node(drawn[0], **(SPOT if drawn[2] else STAYS)), free={"CPU": float(min(drawn[0], drawn[1]))}
        )
    ),
    min_size=1,
    max_size=3,
)
placements = st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
waiting_runs = st.builds(
    lambda workers, placement, is_labelled, beside, priority: run(
        "run",
        workers + beside,
        placement=placement,
        first_labels=STAYS if is_labelled else None,
        beside=beside,
        priority=priority,
    ),
    st.integers(1, 4),
    placements,
    st.booleans(),
    st.integers(0, 1),
    st.integers(0, 1),
)


def ways(ticket: Ticket, free: tuple[int, ...], stays: list[bool]) -> Iterator[tuple[int, ...]]:
    """What each way to place a run leaves free."""
    workers = ticket.fewest - ticket.beside
    for counts in product(*(range(left + 1) for left in free)):
        if sum(counts) != workers or (ticket.placement == "STRICT_SPREAD" and max(counts) > 1):
            continue
        if ticket.placement == "STRICT_PACK" and max(counts) < workers:
            continue
        if ticket.first_labels and not any(count and stay for count, stay in zip(counts, stays, strict=True)):
            continue
        left = tuple(had - count for had, count in zip(free, counts, strict=True))
        if not ticket.beside:
            yield left
        yield from (
            (*left[:index], more - 1, *left[index + 1 :]) for index, more in enumerate(left) if ticket.beside and more
        )


def fit_together(tickets: list[Ticket], free: tuple[int, ...], stays: list[bool]) -> bool:
    """Whether all of them can be placed at once."""
    return not tickets or any(fit_together(tickets[1:], left, stays) for left in ways(tickets[0], free, stays))


def amounts(nodes: list[Node], kind: str) -> tuple[int, ...]:
    return tuple(int(getattr(one, kind)["CPU"]) for one in nodes)


@given(small_nodes, waiting_runs)
def test_the_first_in_line_has_its_turn_exactly_where_it_can_be_placed(nodes: list[Node], ticket: Ticket) -> None:
    stays = [one.labels == STAYS for one in nodes]
    turn = decide([ticket], nodes, {})["run"]
    assert turn.slots == ticket.fewest * fit_together([ticket], amounts(nodes, "free"), stays)
    assert turn.lacks_nodes == (not fit_together([ticket], amounts(nodes, "total"), stays))
    spec = ClusterSpec(
        workers=ticket.fewest - ticket.beside,
        placement=ticket.placement,  # type: ignore[arg-type]
        first_worker_labels=ticket.first_labels or {},
        evaluation="apart" if ticket.beside else "inline",
    )
    assert turn.lacks_nodes != fits(spec, [NodeOffer(one.total, labels=one.labels) for one in nodes]), "a loop"


@given(small_nodes, st.lists(waiting_runs, min_size=2, max_size=4))
def test_turns_fit_together_in_order_and_nobody_who_cannot_start_changes_them(
    nodes: list[Node], drawn: list[Ticket]
) -> None:
    tickets = in_order([replace(ticket, id=str(index), arrival=float(index)) for index, ticket in enumerate(drawn)])
    given = decide(tickets, nodes, {})
    started = [ticket for ticket in tickets if given[ticket.id].slots]
    assert fit_together(started, amounts(nodes, "free"), [one.labels == STAYS for one in nodes])
    for index, ticket in enumerate(tickets):
        blocked = [one for one in tickets[:index] if not given[one.id].slots and not given[one.id].lacks_nodes]
        assert not given[ticket.id].slots or not any(compete(one, ticket, nodes) for one in blocked), "it overtook one"
    helpless = [ticket for ticket in tickets if given[ticket.id].lacks_nodes]
    held = run("held", 1, user="eve", priority=9)
    quotas = QuotaSpec.parse(quota("users eve cpus 0"), source="quotas.yaml")
    for others in ([one for one in tickets if one not in helpless], [*tickets, held]):
        again = decide(others, nodes, {}, quotas)
        assert {one.id: again[one.id].slots for one in others if one is not held and one not in helpless} == {
            one.id: given[one.id].slots for one in tickets if one not in helpless
        }
