"""Compound scaling: Table 3, the published factors, and valid models at any factor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.core.errors import UserError
from yolofleet.models import build_model
from yolofleet.models.profile import Cost, cost, profile
from yolofleet.models.scaling import concatenation_ratio, scale, scaled_width
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import resolve, zoo_names, zoo_table
from yolofleet.specs.blocks import ElanRow
from yolofleet.specs.model import ModelChoice, ModelTable

# Table 3: factors, parameters in millions, GFLOPs, and whether the row is printed from the folded model.
TABLE_3 = {
    "base": ({}, 47.0, 125.5, True),
    "width only": ({"transition_width": 1.25, "hidden_width": 1.25}, 73.4, 195.5, False),
    "depth only": ({"depth": 2.0, "transition_width": 1.0}, 69.3, 187.6, False),
    "compound": ({"depth": 1.5}, 71.3, 189.9, True),
}


def cost_at_640(factors: dict[str, float], *, folded: bool) -> Cost:
    graph = wire(resolve(ModelChoice(name="yolov7-x-light", **factors)))
    return cost(graph, num_classes=80, size=(640, 640), folded=folded)


@pytest.mark.parametrize("row", TABLE_3)
def test_table_3_comes_out_of_the_scaling_function(row: str) -> None:
    factors, parameters, gflops, folded = TABLE_3[row]
    counted = cost_at_640(factors, folded=folded)
    assert round(counted.parameters / 1e6, 1) == parameters
    assert round(counted.gflops_with_bias if folded else counted.gflops_with_norm, 1) == gflops


def test_table_3_parameters_to_the_last_one() -> None:
    # Counted from a separate generator of the same graphs.
    found = [cost_at_640(factors, folded=True).parameters for factors, *_ in TABLE_3.values()]
    assert found == [47_045_245, 73_356_765, 69_285_757, 71_311_741]


@pytest.mark.parametrize(("depth", "ratio"), [(1.5, 1.25), (2.0, 1.5), (1.0, 1.0), (0.5, 0.75)])
def test_transitions_follow_the_concatenation(depth: float, ratio: float) -> None:
    table = zoo_table("yolov7-w6")
    deeper = scale(table, depth=depth)
    assert concatenation_ratio(table.blocks, deeper.blocks) == ratio
    for before, after in zip(table.blocks, deeper.blocks, strict=True):
        if isinstance(before, ElanRow) and isinstance(after, ElanRow):
            assert after.out == before.out * ratio
            assert (after.hidden, after.chain) == (before.hidden, before.chain)


def test_compound_scaling_of_the_light_base_is_yolov7_x() -> None:
    assert scale(zoo_table("yolov7-x-light"), depth=1.5).blocks == zoo_table("yolov7-x").blocks


def test_no_factor_changes_nothing() -> None:
    table = zoo_table("yolov7")
    assert scale(table, depth=1.0) is table


factors = st.fixed_dictionaries(
    {"depth": st.floats(0.33, 2.5)},
    optional={"transition_width": st.floats(0.25, 2.0), "hidden_width": st.floats(0.25, 2.0)},
)


@settings(max_examples=150)
@given(name=st.sampled_from(zoo_names()), factors=factors, num_classes=st.integers(1, 300), side=st.integers(1, 20))
def test_any_factor_gives_a_valid_model(name: str, factors: dict[str, float], num_classes: int, side: int) -> None:
    table = zoo_table(name)
    if not any(isinstance(row, ElanRow) for row in table.blocks):
        factors.pop("hidden_width", None)
    model = scale(table, **factors)
    graph = wire(model)
    found = profile(model, num_classes=num_classes, image_size=side * graph.max_stride)
    assert 0 < found.parameters_deployed <= found.parameters
    assert graph.strides == wire(table).strides
    assert ModelTable.parse(model.document(), source="test") == model
    for row in model.blocks:
        if isinstance(row, ElanRow):
            assert row.stack >= 2
            assert row.stack % 2 == 0


@pytest.mark.slow
@settings(max_examples=10)
@given(name=st.sampled_from(zoo_names()), factors=factors)
def test_a_scaled_build_has_the_parameters_of_its_profile(name: str, factors: dict[str, float]) -> None:
    if not any(isinstance(row, ElanRow) for row in zoo_table(name).blocks):
        factors.pop("hidden_width", None)
    table = scale(zoo_table(name), **factors)
    with torch.device("meta"):
        model = build_model(table, 7)
        shapes = [tuple(raw.shape) for raw in model.raw(torch.empty(1, 3, 128, 128))]
    assert sum(p.numel() for p in model.parameters()) == profile(table, num_classes=7, image_size=128).parameters
    assert shapes[: len(model.strides)] == [(1, 3, 128 // s, 128 // s, 12) for s in model.strides]


@pytest.mark.parametrize("depth", [0.2, 0.33, 0.75, 1.25, 1.5, 2.0])
def test_stacks_are_rounded_to_the_nearest_and_single_blocks_stay_single(depth: float) -> None:
    """Residual stacks to the nearest count, those of ELAN blocks to the nearest even one; never to none."""
    for name in ("yolov3", "yolor-csp", "yolov7-w6"):
        table = zoo_table(name)
        for before, after in zip(table.blocks, scale(table, depth=depth, transition_width=1.0).blocks, strict=True):
            stack = getattr(before, "stack", None)
            if stack is None:
                assert after == before
            elif isinstance(before, ElanRow):
                assert after.stack == max(2 * int(stack * depth / 2 + 0.5), 2)
            else:
                assert after.stack == (max(int(stack * depth + 0.5), 1) if stack > 1 else 1)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 3.0])
def test_each_width_follows_its_own_factor(factor: float) -> None:
    table = zoo_table("yolov7-w6")
    wide, inside = scale(table, transition_width=factor), scale(table, hidden_width=factor)
    for before, outer, inner in zip(table.blocks, wide.blocks, inside.blocks, strict=True):
        if isinstance(before, ElanRow):
            assert (outer.out, outer.hidden, outer.chain) == (before.out * factor, before.hidden, before.chain)
            assert (inner.out, inner.hidden) == (before.out, before.hidden * factor)
            assert inner.chain == (before.chain and before.chain * factor)
    assert table.auxiliary is not None and wide.auxiliary is not None and inside.auxiliary is not None
    assert wide.auxiliary.out == tuple(width * factor for width in table.auxiliary.out)
    assert inside.auxiliary == table.auxiliary


def test_deeper_and_wider_cost_more() -> None:
    costs = [profile(scale(zoo_table("yolov7"), depth=depth)).gflops for depth in (0.5, 1.0, 1.5, 2.0)]
    assert costs == sorted(costs)
    assert len(set(costs)) == 4


def test_widths_are_rounded_up_to_multiples_of_eight() -> None:
    assert [scaled_width(80, factor) for factor in (1.0, 1.1, 1.101, 0.01)] == [80, 88, 96, 8]


@pytest.mark.parametrize("factors", [{"depth": 0.0}, {"transition_width": -1.0}, {"hidden_width": float("nan")}])
def test_impossible_factors_are_refused(factors: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(factors))} must be a positive number"):
        scale(zoo_table("yolov7"), **factors)


def test_a_factor_without_anything_to_act_on_is_refused() -> None:
    with pytest.raises(UserError, match="hidden_width has nothing to act on"):
        scale(zoo_table("yolov3"), hidden_width=2.0)
    assert scale(zoo_table("yolov3"), hidden_width=1.0) is zoo_table("yolov3")
