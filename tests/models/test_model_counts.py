"""Every model costs what the published one does, and its profile is that of its build on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.golden_models import counts
from yolofleet.models import build_model
from yolofleet.models.profile import cost, profile
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import zoo_names, zoo_table

COUNTS = counts()
QUICK = ("yolov7", "yolov7-tiny", "yolov4-tiny")


def built_parameters(name: str, *, deployed: bool) -> int:
    with torch.device("meta"):
        model = build_model(name, deployed=deployed)
    return sum(parameter.numel() for parameter in model.parameters())


def built_macs(name: str, *, deployed: bool) -> int:
    """Multiply-accumulates of the convolutions of a build, counted while images pass it on the meta device."""
    macs = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d)
        macs += module.weight.numel() * output.shape[-2] * output.shape[-1]

    with torch.device("meta"):
        model = build_model(name, deployed=deployed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        size = zoo_table(name).image_size
        model.raw(torch.empty(1, 3, size, size))
    return macs


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_gflops_are_the_published_ones(name: str) -> None:
    found = profile(zoo_table(name)).document()
    assert {key: found[key] for key in ("parameters", "parameters_deployed", "image_size")} == {
        key: COUNTS[name][key] for key in ("parameters", "parameters_deployed", "image_size")
    }
    assert found["gflops"] == pytest.approx(COUNTS[name]["gflops"], abs=6e-5)
    assert found["gflops_deployed"] == pytest.approx(COUNTS[name]["gflops_deployed"], abs=6e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in zoo_names()]
)
def test_profile_equals_a_build_on_the_meta_device(name: str) -> None:
    graph = wire(zoo_table(name))
    size = (graph.table.image_size, graph.table.image_size)
    for deployed in (False, True):
        counted = cost(graph, num_classes=80, size=size, folded=deployed, auxiliary=not deployed)
        assert counted.parameters == built_parameters(name, deployed=deployed)
        assert counted.multiply_accumulates == built_macs(name, deployed=deployed)


# Parameters in millions and GFLOPs of the paper's Tables 1 and 2, each under the rule that reproduces it: folded, with
# one operation a bias; YOLOv4 unfolded; D6 with its auxiliary heads; at 1280 px four times the rounded figure at 640.
PAPER = {
    "yolov7": (36.9, 104.7),
    "yolov7-x": (71.3, 189.9),
    "yolov7-w6": (70.4, 360.0),
    "yolov7-e6": (97.2, 515.2),
    "yolov7-d6": (154.7, 806.8),
    "yolov7-e6e": (151.7, 843.2),
    "yolor-csp": (52.9, 120.4),
    "yolov4-csp": (52.9, 120.4),
    "yolor-csp-x": (96.9, 226.8),
    "yolor-p6": (37.2, 325.6),
    "yolor-w6": (79.8, 453.2),
    "yolor-e6": (115.8, 683.2),
    "yolor-d6": (151.7, 935.6),
    "yolor-u5": (46.5, 109.1),
    "yolov4": (64.4, 142.8),
    "yolov4-tiny": (6.1, 6.9),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_tables_come_out_under_their_counting_rule(name: str) -> None:
    graph = wire(zoo_table(name))
    unfolded = name == "yolov4"
    with_auxiliary = name == "yolov7-d6"
    size = 416 if name == "yolov4-tiny" else 640
    counted = cost(graph, num_classes=80, size=(size, size), folded=not unfolded, auxiliary=with_auxiliary)
    gflops = counted.gflops_with_norm if unfolded else counted.gflops_with_bias
    if graph.table.image_size == 1280:
        gflops = 4 * round(gflops, 1)
    parameters = profile(graph.table).parameters if with_auxiliary else counted.parameters
    assert (round(parameters / 1e6, 1), round(gflops, 1)) == PAPER[name]
