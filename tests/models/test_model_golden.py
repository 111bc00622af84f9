"""Published weights give the published outputs, raw, decoded and deployed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.golden_models import ANCHOR_KINDS, Golden, tensors_of
from yolofleet.models import build_model, deploy
from yolofleet.models.weights import load_official_state_dict, official_parameter_names, read_checkpoint

TOLERANCE = 1e-4

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
    deployed = deploy(model)
    assert golden.error("decoded_fused", deployed(golden.images)) <= TOLERANCE
    for level, found in enumerate(deployed.raw(golden.images)):
        num_channels = golden.shape(f"raw_fused_{level}")[-1]
        assert golden.error(f"raw_fused_{level}", found[..., :num_channels]) <= TOLERANCE


def test_the_weights_are_filled_as_the_published_model_was() -> None:
    golden = Golden("yolov7-tiny")
    kinds = {name: kind for _, name, kind, _ in golden.tensors}
    learnt = [value for name, value in golden.state.items() if kinds[name] not in ("bn_mean", "bn_var", "bn_count")]
    assert sum(float(value.double().sum()) for value in learnt) == pytest.approx(golden.parameters_sum, rel=1e-9)


@pytest.mark.parametrize(
    "name", ["yolov7-tiny", "yolov7", "yolov7-x", "yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e"]
)
def test_every_published_name_and_shape_is_known(name: str) -> None:
    published = {official: tuple(shape) for _, official, kind, shape in tensors_of(name) if kind not in ANCHOR_KINDS}
    with torch.device("meta"):
        model = build_model(name)
    ours = model.state_dict()
    names = official_parameter_names(model)
    assert {official: tuple(ours[own].shape) for official, own in names.items()} == published
    assert set(names.values()) == set(ours) - {"anchors"}


PREFIXES = ["", "model.", "model.model.", "layers."]


def by_channel(raw: torch.Tensor) -> torch.Tensor:
    """(B, anchors, H, W, values) as the permissively licensed implementation has it: (B, anchors x values, H, W)."""
    return raw.permute(0, 1, 4, 2, 3).flatten(1, 2)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "state_dict"])
@pytest.mark.parametrize("prefix", PREFIXES)
@torch.no_grad()
def test_the_permissive_layout_gives_its_outputs(prefix: str, wrapped: bool, tmp_path: Path) -> None:
    golden = Golden("permissive-yolov7")
    state = {prefix + name.removeprefix("model."): tensor for name, tensor in golden.state.items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "v7.pt")
    model = build_model("yolov7-mit").eval()
    report = load_official_state_dict(model, read_checkpoint(tmp_path / "v7.pt"))
    assert report.kept == ("anchors",)
    deployed = deploy(model)
    for level, (found, folded) in enumerate(zip(model.raw(golden.images), deployed.raw(golden.images), strict=True)):
        assert golden.error(f"raw_{level}", by_channel(found)) <= 1e-5
        assert golden.error(f"raw_{level}", by_channel(folded)) <= 1e-4
