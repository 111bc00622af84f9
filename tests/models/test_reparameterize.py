"""Planned re-parameterisation: the rule, and the variants of Tables 4 and 5 as graphs of their own."""

from __future__ import annotations

import pytest
import torch

from yolofleet.core.errors import UserError
from yolofleet.models import build_model
from yolofleet.models.graph import Conv
from yolofleet.models.profile import profile
from yolofleet.models.wiring import ModelGraph, wire
from yolofleet.models.zoo import resolve
from yolofleet.specs.model import ModelChoice

THREE_STACKED_ELAN = {"name": "yolov7-x-light", "depth": 1.5, "transition_width": 1.0}
TABLE_4: list[tuple[str, ...]] = [
    ("first",),
    ("second",),
    ("first", "second"),
    ("second+identity",),
    ("first+identity", "second+identity"),
]
# Table 5: base, RepCSP (RepConv as it is, identity kept), RCSP (reversed), RepRCSP (reversed and planned).
TABLE_5 = {
    "base": {},
    "RepCSP": {"reparameterize": ("residual+identity",)},
    "RCSP": {"reverse_residual": True},
    "RepRCSP": {"reverse_residual": True, "reparameterize": ("residual",)},
}
# Training parameters at 80 classes.
TABLE_5_PARAMETERS = {
    ("yolor-w6", "base"): 79_873_400,
    ("yolor-w6", "RepCSP"): 83_846_776,
    ("yolor-w6", "RCSP"): 79_873_400,
    ("yolor-w6", "RepRCSP"): 83_846_776,
    ("yolor-csp", "base"): 52_923_994,
    ("yolor-csp", "RepCSP"): 55_487_706,
    ("yolor-csp", "RCSP"): 52_923_994,
    ("yolor-csp", "RepRCSP"): 55_487_642,
}


def graph_of(**choice: object) -> ModelGraph:
    return wire(resolve(ModelChoice(**choice)))


def layers(graph: ModelGraph) -> tuple[object, ...]:
    """Everything that decides what a graph computes, its names left out."""
    return tuple((block.sources, block.graph.nodes) for block in graph.blocks)


def rep_convs(graph: ModelGraph) -> list[Conv]:
    return [
        node.layer
        for block in graph.blocks
        for node in block.graph.nodes
        if isinstance(node.layer, Conv) and node.layer.rep
    ]


@pytest.mark.parametrize(("name", "row"), TABLE_5_PARAMETERS)
def test_table_5_variants_have_their_parameters(name: str, row: str) -> None:
    found = profile(graph_of(name=name, **TABLE_5[row]).table)
    assert found.parameters == TABLE_5_PARAMETERS[name, row]


def test_no_two_variants_are_the_same_graph() -> None:
    graphs = [layers(graph_of(**THREE_STACKED_ELAN, reparameterize=positions)) for positions in (None, *TABLE_4)]
    graphs += [
        layers(graph_of(name=name, **choice)) for name in ("yolor-w6", "yolor-csp") for choice in TABLE_5.values()
    ]
    assert len(set(graphs)) == len(graphs)


def test_the_plan_keeps_the_identity_only_away_from_concatenations_and_sums() -> None:
    first = rep_convs(graph_of(**THREE_STACKED_ELAN, reparameterize=("first",)))
    second = rep_convs(graph_of(**THREE_STACKED_ELAN, reparameterize=("second",)))
    assert all(layer.identity for layer in first)
    assert not any(layer.identity for layer in second)
    residual = rep_convs(graph_of(name="yolor-w6", reparameterize=("residual",)))
    reversed_residual = rep_convs(graph_of(name="yolor-w6", reverse_residual=True, reparameterize=("residual",)))
    assert not any(layer.identity for layer in residual[:20])  # the backbone: their results are added
    assert all(layer.identity for layer in reversed_residual)


def test_yolov7_stands_on_its_three_planned_rep_convs() -> None:
    found = rep_convs(graph_of(name="yolov7"))
    assert [(layer.in_channels, layer.out_channels, layer.identity) for layer in found] == [
        (128, 256, False),
        (256, 512, False),
        (512, 1024, False),
    ]
    assert rep_convs(graph_of(name="yolov7", reparameterize="none")) == []
    assert len(rep_convs(graph_of(name="yolov7", reparameterize="planned"))) == 3 + 8 * 4
    assert layers(graph_of(name="yolov7", reparameterize=("head",))) == layers(graph_of(name="yolov7"))


@pytest.mark.parametrize("choice", [*TABLE_4, "planned"])
def test_every_placement_builds_and_trains(choice: tuple[str, ...]) -> None:
    model = build_model(
        ModelChoice(name="yolov7-x-light", transition_width=0.0625, hidden_width=0.125, reparameterize=choice), 2
    )
    sum(raw.mean() for raw in model(torch.rand(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "yolov7", "reparameterize": ("frist",)}, "unknown position 'frist'; did you mean 'first'"),
        ({"name": "yolov7", "reparameterize": ("residual",)}, "has no convolution at residual"),
        ({"name": "yolov7", "reverse_residual": True}, "no dark blocks to reverse"),
    ],
)
def test_wrong_positions_are_refused(choice: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        graph_of(**choice)
