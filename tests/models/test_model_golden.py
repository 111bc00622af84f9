"""Published weights give the published outputs, raw, decoded and deployed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.golden_models import Golden
from yolofleet.models import build_model, deploy
from yolofleet.models.weights import load_official_state_dict, official_parameter_names

TOLERANCE = 1e-4
FULL_NAMES = {"yolov7-x": "yolov7x"}

big = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["yolov7-tiny", "yolov7", pytest.param("yolov7-w6", marks=big), pytest.param("yolov7-e6e", marks=big)]
)
@torch.no_grad()
def test_outputs_equal_the_published_ones(name: str) -> None:
    golden = Golden(name)
    model = build_model(name).eval()
    report = load_official_state_dict(model, golden.state)
    assert report.kept == ("anchors",)
    raw = model.raw(golden.images)
    num_levels = len(model.strides)
    for level in range(num_levels):
        assert golden.error(f"raw_lead_{level}", raw[level]) <= TOLERANCE
    for level in range(model.num_auxiliary_levels):
        assert golden.error(f"raw_aux_{level}", raw[num_levels + level]) <= TOLERANCE
    assert golden.error("decoded", model(golden.images)) <= TOLERANCE
    assert golden.error("decoded_fused", deploy(model)(golden.images)) <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["yolov7-tiny", "yolov7", "yolov7-x", "yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e"]
)
def test_every_published_name_and_shape_is_known(reference: Path, name: str) -> None:
    document = json.loads((reference / "golden" / f"{FULL_NAMES.get(name, name)}.json").read_text())
    published = {t[1]: tuple(t[3]) for t in document["tensors"] if t[2] not in ("anchors", "anchor_grid")}
    with torch.device("meta"):
        model = build_model(name)
    ours = model.state_dict()
    names = official_parameter_names(model)
    assert {official: tuple(ours[own].shape) for official, own in names.items()} == published
    assert set(names.values()) == set(ours) - {"anchors"}
