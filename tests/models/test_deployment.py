"""The deployed form computes what the training form does, and leaves it alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.conftest import randomised
from yolofleet.models import build_model, deploy
from yolofleet.models.deployment import TOLERANCE, DeploymentError, prove, random_images
from yolofleet.models.modules import RepConv
from yolofleet.models.network import Network
from yolofleet.specs.model import ModelChoice

NARROW = {"transition_width": 0.125, "hidden_width": 0.125}
FORMS = [
    ModelChoice(name="yolov7-tiny", **NARROW),
    ModelChoice(name="yolov7", **NARROW),
    ModelChoice(name="yolov7-x-light", **NARROW, reparameterize="planned"),
    ModelChoice(name="yolov7-x-light", **NARROW, reparameterize=("first+identity", "second+identity")),
    ModelChoice(name="yolov7-w6", **NARROW),
    ModelChoice(name="yolov7-e6e", **NARROW, depth=0.34),
    ModelChoice(name="yolor-csp", transition_width=0.125, reparameterize="planned", reverse_residual=True),
    ModelChoice(name="x50-csp", transition_width=0.125, reparameterize="planned"),
    ModelChoice(name="yolov4", transition_width=0.125),
    ModelChoice(name="yolov4-tiny-3l", transition_width=0.25),
    ModelChoice(name="yolor-u5", transition_width=0.125, depth=0.33),
    ModelChoice(name="yolov3-spp", transition_width=0.125),
]


@pytest.mark.parametrize("choice", FORMS, ids=lambda choice: f"{choice.name}-{choice.reparameterize}")
def test_the_deployed_form_computes_the_same(choice: ModelChoice) -> None:
    torch.manual_seed(0)
    model = randomised(build_model(choice, 3))
    deployed = deploy(model)
    images = torch.rand(2, 3, 2 * model.max_stride, 3 * model.max_stride)
    with torch.no_grad():
        want, got = model.eval()(images), deployed(images)
    assert (want - got).abs().max() / want.abs().max() <= TOLERANCE
    assert prove(model, deployed, images) <= TOLERANCE


def test_it_computes_the_same_on_real_images(narrow_tiny: Network, test_data: Path) -> None:
    paths = sorted((test_data / "coco128").rglob("*.jpg"))[:4]
    inputs = [np.asarray(Image.open(path).convert("RGB").resize((192, 128))) for path in paths]
    images = torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2).float() / 255
    assert prove(narrow_tiny, deploy(narrow_tiny), images) <= TOLERANCE


def test_nothing_of_training_is_left(narrow_e6e: Network) -> None:
    deployed = deploy(narrow_e6e)
    assert deployed.deployed
    assert not deployed.training
    kinds = {type(module).__name__ for module in deployed.modules()}
    assert not kinds & {"BatchNorm2d", "RepConv", "ImplicitAdd", "ImplicitMultiply"}
    assert not any("auxiliary" in name for name in deployed.state_dict())
    assert deployed.num_auxiliary_levels == 0
    assert len(deployed.raw(torch.rand(1, 3, 64, 64))) == 4


def test_deploying_twice_is_harmless(narrow_tiny: Network) -> None:
    deployed = deploy(narrow_tiny)
    before = {name: tensor.clone() for name, tensor in deployed.state_dict().items()}
    again = deploy(deployed)
    assert all(torch.equal(before[name], tensor) for name, tensor in again.state_dict().items())


def test_training_goes_on_unaffected(narrow_tiny: Network) -> None:
    narrow_tiny.train()
    frozen = next(module for module in narrow_tiny.modules() if isinstance(module, torch.nn.BatchNorm2d)).eval()
    before = {name: tensor.clone() for name, tensor in narrow_tiny.state_dict().items()}
    random_state = torch.get_rng_state()
    deployed = deploy(narrow_tiny)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], tensor) for name, tensor in narrow_tiny.state_dict().items())
    assert narrow_tiny.training
    assert not frozen.training
    sum(raw.mean() for raw in narrow_tiny(torch.rand(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in narrow_tiny.parameters())
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    shared = {tensor.data_ptr() for tensor in narrow_tiny.state_dict().values()}
    assert not shared & {tensor.data_ptr() for tensor in deployed.state_dict().values()}


def test_half_precision_weights_are_folded_and_proven_in_float32(narrow_tiny: Network) -> None:
    deployed = deploy(narrow_tiny.half())
    assert {parameter.dtype for parameter in deployed.parameters()} == {torch.float32}


def test_a_form_that_computes_something_else_is_not_handed_out(narrow_tiny: Network) -> None:
    deployed = deploy(narrow_tiny)
    with torch.no_grad():
        deployed.blocks["c3"][0].conv.weight[0] += 0.5
    with pytest.raises(DeploymentError, match="level 0 of the deployed form differs"):
        prove(narrow_tiny, deployed, random_images(narrow_tiny))
    with torch.no_grad():
        narrow_tiny.blocks["c3"][0].conv.weight[0] = float("nan")
    with pytest.raises(DeploymentError, match="are all weights finite numbers"):
        deploy(narrow_tiny)


def test_rep_conv_folds_to_one_convolution() -> None:
    with torch.device("meta"):
        model = build_model(ModelChoice(name="yolov7", **NARROW), 1)
        assert sum(isinstance(module, RepConv) for module in model.modules()) == 3
        assert not any(isinstance(module, RepConv) for module in deploy(model).modules())
