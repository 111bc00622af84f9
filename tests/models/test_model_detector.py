"""The contract of a detector: raw and decoded outputs, modes, start of training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from yolofleet.core.errors import UserError
from yolofleet.models import build_model, deploy, modules
from yolofleet.models.network import ImplicitAdd, ImplicitMultiply, Network
from yolofleet.models.zoo import zoo_table
from yolofleet.specs.model import ModelChoice, ModelTable


def test_raw_heads_are_level_by_level_and_auxiliary_ones_last(narrow_e6e: Network) -> None:
    images = torch.rand(2, 3, 128, 192)
    raw = narrow_e6e.raw(images)
    assert narrow_e6e.num_auxiliary_levels == 4
    assert [tuple(level.shape) for level in raw] == [
        (2, 3, 128 // stride, 192 // stride, 8) for stride in (*narrow_e6e.strides, *narrow_e6e.strides)
    ]
    assert narrow_e6e.strides == (8, 16, 32, 64)
    assert narrow_e6e.max_stride == 64


@torch.no_grad()
def test_training_returns_raw_and_evaluation_decoded(narrow_tiny: Network) -> None:
    images = torch.rand(2, 3, 64, 96)
    narrow_tiny.eval()
    raw, decoded = narrow_tiny.raw(images), narrow_tiny(images)
    assert decoded.shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 8)
    assert torch.equal(decoded, narrow_tiny.decode(raw))
    narrow_tiny.train()
    assert isinstance(narrow_tiny(images), list)


@torch.no_grad()
def test_decoding_is_the_published_formula(narrow_tiny: Network) -> None:
    # s = sigmoid(raw): xy = (2 s - 0.5 + cell) * stride, wh = (2 s)^2 * anchor; boxes by anchor, row, column.
    level, anchor, row, column = 1, 2, 3, 1
    raw = [torch.randn(1, 3, 64 // s, 64 // s, 8) for s in narrow_tiny.strides]
    decoded = narrow_tiny.decode(raw)
    s = raw[level][0, anchor, row, column].sigmoid()
    index = 3 * 8 * 8 + anchor * 4 * 4 + row * 4 + column
    width, height = narrow_tiny.anchors[level, anchor].tolist()
    expected = torch.stack(
        [
            (2 * s[0] - 0.5 + column) * 16,
            (2 * s[1] - 0.5 + row) * 16,
            (2 * s[2]) ** 2 * width,
            (2 * s[3]) ** 2 * height,
            *s[4:],
        ]
    )
    torch.testing.assert_close(decoded[0, index], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_boxes_are_decoded_in_single_precision(narrow_tiny: Network, dtype: torch.dtype) -> None:
    raw = [torch.zeros(1, 3, 640 // stride, 640 // stride, 8, dtype=dtype) for stride in narrow_tiny.strides]
    decoded = narrow_tiny.decode(raw)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded[0, :80, 0], torch.arange(80) * 8 + 4.0)


def test_evaluation_does_none_of_the_auxiliary_head_s_work(narrow_e6e: Network) -> None:
    ran: list[str] = []
    for name, block in narrow_e6e.blocks.items():
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
    narrow_e6e.eval()(torch.rand(1, 3, 64, 64))
    assert ran
    assert not any(name.startswith("auxiliary") for name in ran)


def test_partial_auxiliary_heads_reach_one_group_only(narrow_e6e: Network) -> None:
    raw = narrow_e6e.train()(torch.rand(2, 3, 128, 128))
    sum(level.square().mean() for level in raw[4:7]).backward()
    block = narrow_e6e.blocks["f3"]
    convs = [layer for layer in block if hasattr(layer, "conv")]
    closing_first, closing_second = convs[len(convs) // 2 - 1], convs[-1]
    # f3 feeds nothing but heads and the bottom-up path, which the auxiliary losses do not touch.
    assert closing_first.conv.weight.grad is None
    assert closing_second.conv.weight.grad.abs().sum() > 0


def test_heads_start_at_the_expected_frequency_of_objects() -> None:
    torch.manual_seed(0)
    model = build_model("yolov7-tiny", num_classes=80)
    for level, (objectness, classes) in enumerate([(-6.6846, -4.8804), (-5.2983, -4.8804), (-3.9120, -4.8804)]):
        bias = model.head.lead[level].bias.view(3, 85)
        bound = 1 / math.sqrt(model.head.lead[level].in_channels)  # the usual random bias is within this
        assert (bias[:, 4] - objectness).abs().max() <= bound + 1e-4
        assert (bias[:, 5:] - classes).abs().max() <= bound + 1e-4
        assert bias[:, :4].abs().max() <= bound


def test_batch_norm_and_implicit_knowledge_as_published(narrow_tiny: Network) -> None:
    norms = [module for module in narrow_tiny.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    added = [module for module in narrow_tiny.modules() if isinstance(module, ImplicitAdd)]
    multiplied = [module for module in narrow_tiny.modules() if isinstance(module, ImplicitMultiply)]
    assert [tuple(module.value.shape) for module in added] == [(1, 64, 1, 1), (1, 128, 1, 1), (1, 256, 1, 1)]
    assert [tuple(module.value.shape) for module in multiplied] == [(1, 24, 1, 1)] * 3


def test_every_parameter_takes_part_in_training(narrow_e6e: Network) -> None:
    sum(level.square().mean() for level in narrow_e6e.train()(torch.rand(2, 3, 128, 128))).backward()
    assert [name for name, parameter in narrow_e6e.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_a_copy_computes_the_same_and_stands_alone(narrow_tiny: Network) -> None:
    images = torch.rand(1, 3, 64, 64)
    twin = copy.deepcopy(narrow_tiny.eval())
    assert torch.equal(twin(images), narrow_tiny(images))
    for parameter in twin.parameters():
        parameter.zero_()
    assert not torch.equal(twin(images), narrow_tiny(images))


def test_inputs_in_any_layout_give_the_same_numbers(narrow_tiny: Network) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain = narrow_tiny.eval()(images)
        other = narrow_tiny(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-4)


def test_the_table_of_a_model_survives_json(narrow_e6e: Network) -> None:
    document = narrow_e6e.table.document()
    table = ModelTable.parse(document, source="test")
    assert table == narrow_e6e.table
    rebuilt = build_model(table, 3)
    rebuilt.load_state_dict(narrow_e6e.state_dict())
    deploy(rebuilt).load_state_dict(deploy(narrow_e6e).state_dict())
    build_model(table, 3, deployed=True).load_state_dict(deploy(narrow_e6e).state_dict())


def test_a_model_is_built_from_name_choice_table_or_path(tmp_path) -> None:
    names = [build_model(choice, 1).table.name for choice in ("yolov7-tiny", ModelChoice(name="yolov7-tiny"))]
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbase: yolov7-tiny\ntransition_width: 0.25\nhidden_width: 0.25\n")
    names += [build_model(choice, 1).table.name for choice in (zoo_table("yolov7-tiny"), path, str(path))]
    names.append(build_model(ModelChoice(spec=str(path)), 1).table.name)
    assert names == ["yolov7-tiny"] * 3 + ["mine"] * 3


def test_wrong_sizes_and_no_classes_are_refused(narrow_tiny: Network) -> None:
    with pytest.raises(UserError, match=r"\(64, 70\) must be multiples of 32"):
        narrow_tiny(torch.rand(1, 3, 64, 70))
    with pytest.raises(UserError, match="at least one class, not 0"):
        build_model("yolov7-tiny", num_classes=0)


@pytest.mark.parametrize("activation", ["silu", "leaky_relu", "mish"])
def test_overwriting_changes_no_gradient(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    choice = ModelChoice(
        name="yolov7", activation=activation, transition_width=0.05, hidden_width=0.05, reparameterize="planned"
    )
    model = build_model(choice, 1).double().train()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    functions = {"silu": F.silu, "leaky_relu": lambda x: F.leaky_relu(x, 0.1), "mish": F.mish}

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        sum((level * level).mean() for level in model(images)).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    found = gradients()
    monkeypatch.setattr(modules, "activate", lambda x, name: functions[name](x))
    for got, want in zip(found, gradients(), strict=True):
        torch.testing.assert_close(got, want)
