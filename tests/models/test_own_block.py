"""A block from outside the package: registered by one line, checked, scaled, counted and trained like any other."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from yolofleet.models import build_model, deploy
from yolofleet.models.blocks import register_block
from yolofleet.models.graph import BlockBuilder, Feature
from yolofleet.models.profile import profile
from yolofleet.models.scaling import scale
from yolofleet.specs.base import SpecError
from yolofleet.specs.blocks import Row, Stack, Transition
from yolofleet.specs.model import ModelTable


class GhostRow(Row):
    """Half of the channels by a convolution, the other half by a cheap depthwise one of the first."""

    block: Literal["ghost"]
    out: Transition
    stack: Stack = 1


@register_block(GhostRow)
def ghost(net: BlockBuilder, row: GhostRow) -> Feature:
    x = net.inputs[0]
    for _ in range(row.stack):
        first = net.conv(x, row.out // 2)
        x = net.concat([first, net.conv(first, row.out // 2, 5, groups=row.out // 2)])
    return x


def table(**changes: object) -> ModelTable:
    rows = [
        {"block": "conv", "out": 16, "stride": 2},
        {"block": "conv", "out": 16, "stride": 2},
        {"name": "level", "block": "ghost", "out": 32, "stack": 2, **changes},
    ]
    document = {
        "format": 1,
        "name": "ghostly",
        "image_size": 64,
        "activation": "silu",
        "blocks": rows,
        "anchors": [[12, 16, 19, 36]],
        "head": {"inputs": ["level"], "implicit": False},
    }
    return ModelTable.parse(document, source="ghostly.yaml")


def test_it_is_built_counted_and_deployed() -> None:
    model = build_model(table(), num_classes=3)
    assert sum(weight.numel() for weight in model.parameters()) == profile(table(), num_classes=3).parameters
    images = torch.rand(2, 3, 64, 64)
    model(images)[0].sum().backward()
    deployed = deploy(model.eval())
    torch.testing.assert_close(deployed.eval()(images), model.eval()(images), rtol=1e-4, atol=1e-4)


def test_it_follows_compound_scaling_by_its_markers() -> None:
    row = scale(table(), depth=2.0, transition_width=1.5, hidden_width=1.0).blocks[-1]
    assert isinstance(row, GhostRow) and (row.stack, row.out) == (4, 48)


def test_a_table_with_it_survives_its_document() -> None:
    assert ModelTable.parse(table().document(), source="again") == table()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"stck": 2}, "did you mean 'stack'"), ({"out": 0}, "greater than or equal to 1"), ({"block": "gost"}, "'ghost'")],
)
def test_its_keys_are_checked_by_the_same_schema(changes: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        table(**changes)
