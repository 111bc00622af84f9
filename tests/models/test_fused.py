"""The fused form of a CPU computes what the deployed form does, for any size and batch; no other model gets one."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from models.conftest import randomised
from yolofleet.models import build_model, deploy
from yolofleet.models.fused import FusedConvolution, can_be_fused, fastest_form, fused_form
from yolofleet.models.modules import ConvNormAct
from yolofleet.models.network import Network
from yolofleet.specs.model import ModelChoice

NARROW = {"transition_width": 0.125, "hidden_width": 0.125}
CHOICES = [
    ModelChoice(name="yolov7-tiny", **NARROW),  # LeakyReLU
    ModelChoice(name="yolov7", **NARROW),  # SiLU
    ModelChoice(name="yolov7-w6", **NARROW),  # space to depth first
    ModelChoice(name="yolov7-e6e", **NARROW, depth=0.34),  # convolutions of groups
    ModelChoice(name="yolov4", transition_width=0.125),  # Mish, which oneDNN's operator does not know
]


def deployed(choice: ModelChoice) -> Network:
    torch.manual_seed(0)
    model = deploy(randomised(build_model(choice, 3)))
    if not can_be_fused(model):
        pytest.skip("this torch or this processor has no fused convolutions")
    return model


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
@torch.inference_mode()
def test_it_computes_the_same(choice: ModelChoice) -> None:
    model = deployed(choice)
    before = copy.deepcopy(model.state_dict())
    fused = fused_form(model, 2 * model.max_stride)
    stride = model.max_stride
    for batch, height, width in ((1, 2, 2), (3, 1, 3), (2, 4, 1)):
        images = torch.rand(batch, 3, height * stride, width * stride)
        for given in (images, images.contiguous(memory_format=torch.channels_last)):
            want, got = model(given), fused(given)
            assert (want - got).abs().max() <= 1e-5 * want.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "left as it was"


def test_every_convolution_is_fused_but_those_with_mish() -> None:
    for choice in CHOICES:
        fused = fused_form(deployed(choice), 128)
        plain = [module for module in fused.modules() if isinstance(module, ConvNormAct | torch.nn.Conv2d)]
        left = {module.activation for module in plain if isinstance(module, ConvNormAct)}
        assert left == ({"mish"} if choice.name == "yolov4" else set())
        assert any(isinstance(module, FusedConvolution) for module in fused.modules())
        assert not any(parameter.is_meta for parameter in (*fused.parameters(), *fused.buffers()))


def test_models_without_a_fused_form_are_returned_as_they_are() -> None:
    model = deployed(CHOICES[0])
    for other in (build_model(CHOICES[0], 3).eval(), copy.deepcopy(model).double(), copy.deepcopy(model).to("meta")):
        assert not can_be_fused(other)
        assert fastest_form(other, 128) is other


def test_a_form_that_computes_something_else_is_never_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = deployed(CHOICES[0])
    monkeypatch.setitem(fused_form.__globals__["ACTIVATIONS"], "leaky_relu", ("relu", []))
    with caplog.at_level(logging.WARNING):
        assert fastest_form(model, 128) is model
    assert "slower" in caplog.text
