"""E-ELAN as expand, shuffle, merge cardinality equals the two branches."""

from __future__ import annotations

import pytest
import torch

from yolofleet.core.errors import UserError
from yolofleet.models import build_model, deploy
from yolofleet.models.eelan import grouped_form
from yolofleet.models.graph import Conv, MergeGroups, Shuffle
from yolofleet.models.network import Network
from yolofleet.models.profile import profile
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import zoo_table


@torch.no_grad()
def test_the_grouped_form_equals_the_branches(narrow_e6e: Network) -> None:
    grouped = grouped_form(narrow_e6e.eval())
    images = torch.rand(2, 3, 128, 192)
    for want, got in zip(narrow_e6e.raw(images), grouped.raw(images), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deploy(grouped)(images), narrow_e6e(images), rtol=1e-3, atol=1e-2)


def test_gradients_agree_too(narrow_e6e: Network) -> None:
    grouped = grouped_form(narrow_e6e.train().double())
    images = torch.rand(2, 3, 128, 128, dtype=torch.float64)
    for model in (narrow_e6e, grouped):
        sum(level.square().mean() for level in model(images)).backward()
    branches = narrow_e6e.blocks["c2"]
    expected = torch.cat([branches[0].conv.weight.grad, branches[len(branches) // 2].conv.weight.grad])
    torch.testing.assert_close(grouped.blocks["c2"][0].conv.weight.grad, expected, rtol=1e-6, atol=1e-12)


def test_it_expands_shuffles_and_merges_at_the_same_cost(narrow_e6e: Network) -> None:
    table = grouped_form(narrow_e6e).table
    block = next(block for block in wire(table).blocks if block.name == "c3")
    layers = [node.layer for node in block.graph.nodes]
    convs = [layer for layer in layers if isinstance(layer, Conv)]
    assert [layer.groups for layer in convs[2:]] == [2] * (len(convs) - 2)
    assert sum(isinstance(layer, Shuffle) for layer in layers) == 1
    assert sum(isinstance(layer, MergeGroups) for layer in layers) == 1
    before, after = profile(narrow_e6e.table), profile(table)
    assert (before.parameters, before.gflops) == (after.parameters, after.gflops)


def test_the_extended_block_keeps_the_width_of_the_original_one() -> None:
    plain, extended = wire(zoo_table("yolov7-e6")), wire(zoo_table("yolov7-e6e"))
    assert extended.lead_channels == plain.lead_channels
    assert extended.auxiliary_channels == plain.auxiliary_channels


def test_models_without_such_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="no E-ELAN blocks in branch form"), torch.device("meta"):
        grouped_form(build_model("yolov7-tiny"))
