"""One training step of whole models: total and every parameter's gradient norm as published (golden README, 1)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.golden_models import filled_state_dict
from yolofleet.losses import DetectionLoss
from yolofleet.models import build_model
from yolofleet.models.official_names import official_parameter_names
from yolofleet.models.weights import load_official_state_dict


@pytest.fixture(autouse=True)
def as_published() -> Iterator[None]:
    """Compute in two threads: leaky ReLU's gradient jumps, so its norms are met only where rounding is the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["yolov7-tiny", pytest.param("yolov7", marks=pytest.mark.slow)])
def test_train_step_is_the_published_one(reference: Path, name: str) -> None:
    golden = json.loads((reference / "golden" / f"trainstep_{name}.json").read_text())
    tensors = json.loads((reference / "golden" / f"{name}.json").read_text())["tensors"]
    model = build_model(name, num_classes=80)
    load_official_state_dict(model, filled_state_dict(tensors, golden["gain"]))
    loss = DetectionLoss(
        anchors=model.anchors,
        strides=model.strides,
        num_classes=80,
        hyperparameters=golden["hyp"],
        assigner="coarse_to_fine" if model.num_auxiliary_levels else "none",
    )
    draw = np.random.default_rng(golden["input"]["seed"])
    images = torch.from_numpy(draw.random(golden["input"]["shape"]).astype(np.float32))

    result = loss(model.train()(images), torch.tensor(golden["targets"]), tuple(images.shape[2:]))
    result.total.backward()

    assert result.total.item() == pytest.approx(golden["total"], rel=1e-4)
    items = [result.box.item(), result.objectness.item(), result.classification.item()]
    assert items == pytest.approx(golden["items_box_obj_cls_sum"][:3], rel=1e-4)
    ours = official_parameter_names(model)
    parameters = dict(model.named_parameters())
    norms = {official: parameters[ours[official]].grad for official, _ in golden["grad_l2_per_parameter"]}
    assert len(norms) == len(parameters)
    for official, wanted in golden["grad_l2_per_parameter"]:
        gradient = norms[official]
        assert gradient is not None
        assert gradient.double().norm().item() == pytest.approx(wanted, rel=1e-3, abs=1e-6), official
