"""Weights from elsewhere: published layouts, other classes, other models."""

from __future__ import annotations

import pytest
import torch

from models.conftest import randomised
from models.published_layouts import permissive, published
from yolofleet.core.errors import UserError
from yolofleet.models import build_model, deploy
from yolofleet.models.network import Network
from yolofleet.models.official_names import head_prefix
from yolofleet.models.weight_fit import layout_note
from yolofleet.models.weights import (
    WeightsError,
    load_official_state_dict,
    match_classes,
    official_num_classes,
    official_parameter_names,
    transfer_state_dict,
)
from yolofleet.specs.model import ModelChoice

NARROW = {"transition_width": 0.125, "hidden_width": 0.125}


def narrow(name: str, num_classes: int = 3, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return randomised(build_model(ModelChoice(name=name, **NARROW), num_classes), seed)


def same(left: Network, right: Network) -> bool:
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        return torch.equal(left.eval()(images), right.eval()(images))


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7", "yolov7-e6e"])
def test_published_names_go_there_and_back(name: str) -> None:
    model, other = narrow(name), narrow(name, seed=1)
    assert not same(model, other)
    report = load_official_state_dict(other, published(model))
    assert report.kept == ("anchors",)
    assert same(model, other)


@pytest.mark.parametrize("name", ["yolov7", "yolov7-w6"])
def test_the_deployment_layout_makes_implicit_knowledge_neutral(name: str) -> None:
    model, other = narrow(name), narrow(name, seed=1)
    with torch.no_grad():
        for add, multiply in zip(model.head.add, model.head.multiply, strict=True):
            add.value.zero_()
            multiply.value.fill_(1)
    state = {key: value for key, value in published(model, deploy_layout=True).items()}
    assert not any(".ia." in key or ".m2." in key for key in state)
    report = load_official_state_dict(other, state)
    assert same(model, other)
    assert all(name.startswith(("anchors", "head.a", "head.m", "blocks.auxiliary")) for name in report.kept)


def test_half_precision_and_parallel_prefixes_are_read() -> None:
    model, other = narrow("yolov7-tiny"), narrow("yolov7-tiny", seed=1)
    state = {f"module.{name}": t.half() if t.is_floating_point() else t for name, t in published(model).items()}
    load_official_state_dict(other, state)
    torch.testing.assert_close(other.head.lead[0].weight, model.head.lead[0].weight, rtol=1e-3, atol=1e-3)
    assert other.head.lead[0].weight.dtype == torch.float32


def test_anchors_are_taken_over_from_cells_or_pixels() -> None:
    model = narrow("yolov7-tiny")
    pixels = torch.arange(1.0, 19).view(3, 3, 2)
    cells = pixels / torch.tensor(model.strides).view(3, 1, 1)
    prefix = head_prefix(model)
    load_official_state_dict(model, {**published(model), f"{prefix}.anchors": cells})
    torch.testing.assert_close(model.anchors, pixels)
    load_official_state_dict(model, {**published(model), f"{prefix}.anchor_grid": 2 * pixels.view(3, 1, 3, 1, 1, 2)})
    torch.testing.assert_close(model.anchors, 2 * pixels)
    assert model.table.anchors[0] == (2.0, 4.0, 6.0, 8.0, 10.0, 12.0)


@pytest.mark.parametrize("field", ["anchors", "anchor_grid"])
@pytest.mark.parametrize(
    "anchors",
    [torch.zeros(3, 3, 2), torch.ones(4, 3, 2), torch.ones(18), torch.ones(()), torch.full((3, 3, 2), torch.inf)],
)
def test_broken_anchors_are_left_with_a_warning(anchors: torch.Tensor, field: str) -> None:
    model = narrow("yolov7-tiny")
    before = model.anchors.clone()
    with pytest.warns(UserWarning, match="anchors are not usable"):
        load_official_state_dict(model, {**published(model), f"{head_prefix(model)}.{field}": anchors})
    assert torch.equal(model.anchors, before)


def test_a_prediction_layer_that_is_none_is_refused() -> None:
    model = narrow("yolov7-tiny")
    state = {**published(model), f"{head_prefix(model)}.m.0.weight": torch.tensor(1.0)}
    with pytest.raises(WeightsError, match=r"none of .* is a prediction layer"):
        official_num_classes(model.table, state)
    with pytest.raises(WeightsError):
        load_official_state_dict(model, state)


def test_a_checkpoint_of_another_model_says_what_is_missing_and_left_over() -> None:
    with pytest.raises(WeightsError, match=r"not weights of yolov7: \d+ \(model.*, \.\.\.\) missing, \d+ .* left over"):
        load_official_state_dict(narrow("yolov7"), published(narrow("yolov7-tiny")))


def test_other_widths_name_the_tensors_and_shapes() -> None:
    wider = build_model(ModelChoice(name="yolov7-tiny", transition_width=0.25, hidden_width=0.25), 3)
    with pytest.raises(WeightsError, match=r"model\.0\.conv\.weight: \(8, 3, 3, 3\), the model has \(8|16"):
        load_official_state_dict(wider, published(narrow("yolov7-tiny")))


def test_a_refused_checkpoint_changes_nothing() -> None:
    model = narrow("yolov7-tiny")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = published(narrow("yolov7-tiny", seed=1))
    state.pop("model.77.m.0.weight")
    with pytest.raises(WeightsError, match=r"1 \(model\.77\.m\.0\.weight\) missing; choose"):
        load_official_state_dict(model, state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_number_of_classes_says_how_to_transfer() -> None:
    with pytest.raises(
        WeightsError, match=r"predict 3 classes, the model 5; build it with num_classes=3, or .*transfer"
    ):
        load_official_state_dict(narrow("yolov7-tiny", 5), published(narrow("yolov7-tiny", 3)))


def test_published_weights_tell_their_number_of_classes() -> None:
    model = narrow("yolov7-w6", 7)
    assert official_num_classes(model.table, published(model)) == 7
    with pytest.raises(WeightsError, match="not published weights"):
        official_num_classes(model.table, model.state_dict())


@pytest.mark.parametrize("under_published_names", [False, True])
def test_transfer_takes_all_but_the_last_layer(under_published_names: bool) -> None:
    source, model = narrow("yolov7-w6", 3), narrow("yolov7-w6", 5, seed=1)
    last = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("head.")}
    report = transfer_state_dict(model, published(source) if under_published_names else source.state_dict())
    state = model.state_dict()
    assert {name.split(".")[1] for name in report.kept} == {"lead", "auxiliary", "multiply"}
    for name, tensor in source.state_dict().items():
        if name in report.kept:
            assert torch.equal(state[name], last[name])
        else:
            assert torch.equal(state[name], tensor)


def test_transfer_from_a_deployment_layout_keeps_auxiliary_heads_fresh() -> None:
    source, model = narrow("yolov7-w6", 3), narrow("yolov7-w6", 5, seed=1)
    state = {name: t for name, t in published(source, deploy_layout=True).items() if "num_batches" not in name}
    report = transfer_state_dict(model, state)
    kept = [name for name in report.kept if "num_batches" not in name]
    assert {".".join(name.split(".")[:2])[:16] for name in kept} == {
        "blocks.auxiliary",
        "head.lead",
        "head.auxiliary",
        "head.add",
        "head.multiply",
    }
    assert torch.equal(model.blocks["c3"][0].conv.weight, source.blocks["c3"][0].conv.weight)


def test_transfer_refuses_another_model() -> None:
    with pytest.raises(WeightsError, match="not weights of yolov7-tiny"):
        transfer_state_dict(narrow("yolov7-tiny"), narrow("yolov7").state_dict())


def test_transfer_from_other_widths_names_the_shapes_and_the_cure() -> None:
    wider = build_model(ModelChoice(name="yolov7-tiny", transition_width=0.5, hidden_width=0.5), 3)
    with pytest.raises(WeightsError, match=r"blocks\.conv_0.*the model has .*of another shape; use the same scaling"):
        transfer_state_dict(wider, narrow("yolov7-tiny").state_dict())


def test_transfer_from_folded_layers_says_where_the_others_are() -> None:
    with pytest.raises(WeightsError, match=r"deployed model.*training\.safetensors"):
        transfer_state_dict(narrow("yolov7-tiny"), deploy(narrow("yolov7-tiny")).state_dict())


def test_deployed_models_have_published_names_too(narrow_tiny: Network) -> None:
    deployed = deploy(narrow_tiny)
    assert set(official_parameter_names(deployed).values()) == set(deployed.state_dict()) - {"anchors"}


@pytest.mark.parametrize("prefix", ["", "model.", "model.model.", "layers.", "module.model."])
def test_the_permissive_layout_is_read_with_any_prefix(prefix: str) -> None:
    model, other = narrow("yolov7"), narrow("yolov7", seed=1)
    state = permissive(model, prefix)
    assert any(".heads.0.head_conv." in name for name in state) and any("merge_conv" in name for name in state)
    assert official_num_classes(model.table, state) == 3
    assert load_official_state_dict(other, state).kept == ("anchors",)
    assert same(model, other)


def test_of_a_training_state_the_average_is_taken_and_nothing_that_is_no_model() -> None:
    model, average, other = narrow("yolov7"), narrow("yolov7", seed=1), narrow("yolov7", seed=2)
    extra = {"loss_fn.weight": torch.ones(1), "metric.3.total": torch.ones(1)}
    state = permissive(model, "model.model.") | permissive(average, "ema.model.") | extra
    load_official_state_dict(other, state)
    assert same(average, other)


def test_several_models_are_refused_by_their_prefixes() -> None:
    model = narrow("yolov7-tiny")
    state = published(model) | {f"teacher.{name}": tensor for name, tensor in published(model).items()}
    with pytest.raises(UserError, match=r"2 models \(model\., teacher\.model\.\)"):
        load_official_state_dict(narrow("yolov7-tiny"), state)


def test_transfer_from_the_permissive_layout_takes_all_but_the_last_layer() -> None:
    source, model = narrow("yolov7", 3), narrow("yolov7", 5, seed=1)
    report = transfer_state_dict(model, permissive(source, "model.model."))
    assert {name.split(".")[1] for name in report.kept} == {"lead", "multiply"}
    assert torch.equal(model.blocks["s5"][0].conv.weight, source.blocks["s5"][0].conv.weight)


def test_weights_of_the_permissive_layout_say_which_model_is_theirs() -> None:
    own, paper = narrow("yolov7-mit"), narrow("yolov7")
    assert "yolov7-mit" in (layout_note(paper.table, permissive(paper)) or "")
    assert layout_note(own.table, permissive(own)) is None
    assert layout_note(paper.table, published(paper)) is None


@pytest.mark.parametrize(
    ("given", "wrong", "fitting"),
    [
        ("yolov7-tiny", "yolov7", " but of yolov7-tiny: choose"),
        ("yolov7", "yolov7-tiny", "; they fit yolov7 and yolov7-mit: choose"),
        ("yolor-p6", "yolov7-w6", " but of yolor-p6: choose"),
    ],
)
def test_weights_of_another_model_name_the_one_that_fits(given: str, wrong: str, fitting: str) -> None:
    with torch.device("meta"):
        source, model = build_model(given, 7), build_model(wrong, 7)
    for state in (published(source), source.state_dict()):
        with pytest.raises(WeightsError, match=rf"not weights of {wrong}{fitting}"):
            transfer_state_dict(model, state)
    with pytest.raises(WeightsError, match=rf"not weights of {wrong}{fitting}"):
        load_official_state_dict(model, published(source))


def test_classes_are_matched_by_name_whatever_its_spelling() -> None:
    known = ["person", "traffic light", "cup", "Cup"]
    assert match_classes(["Traffic_Light", "cup", "rbc", "PERSON"], known) == (1, 2, -1, 0)


@pytest.mark.parametrize("layout", ["own", "published"])
@pytest.mark.parametrize("name", ["yolov7", "yolov7-w6"])
def test_known_classes_keep_their_rows_and_the_others_start_fresh(name: str, layout: str) -> None:
    source, model = narrow(name, 3), narrow(name, 4, seed=1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = transfer_state_dict(model, source.state_dict() if layout == "own" else published(source), (2, -1, 0, -1))
    after, given = model.state_dict(), source.state_dict()
    last = [key for key in after if key.startswith(("head.lead.", "head.auxiliary.", "head.multiply."))]
    assert set(report.known_rows) == set(last) and not set(last) & {*report.loaded, *report.kept}
    for key in last:
        new, old, fresh = (
            state[key].flatten(0, 1) if "multiply" in key else state[key] for state in (after, given, before)
        )
        new, old, fresh = (tensor.unflatten(0, (3, -1)) for tensor in (new, old, fresh))
        assert torch.equal(new[:, :5], old[:, :5])
        assert torch.equal(new[:, 5], old[:, 7]) and torch.equal(new[:, 7], old[:, 5])
        assert torch.equal(new[:, [6, 8]], fresh[:, [6, 8]])


def test_where_no_class_is_known_the_last_layer_starts_fresh() -> None:
    source, model = narrow("yolov7-tiny", 3), narrow("yolov7-tiny", 3, seed=1)
    report = transfer_state_dict(model, source.state_dict(), (-1, -1, -1))
    assert {name.split(".")[1] for name in report.kept if "num_batches" not in name} == {"lead", "multiply"}
    assert not report.known_rows


def test_a_last_layer_that_does_not_fit_changes_nothing() -> None:
    model = narrow("yolov7-tiny", 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = narrow("yolov7-tiny", 3, seed=1).state_dict()
    state["head.lead.1.bias"] = torch.zeros(25)
    with pytest.raises(WeightsError, match=r"head\.lead\.1\.bias has the shape \(25,\)"):
        transfer_state_dict(model, state, (0, -1))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
