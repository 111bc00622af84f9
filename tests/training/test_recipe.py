"""Every hyper-parameter does what it says: changed alone, it changes what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from yolofleet.data.dataset import ShardDataset
from yolofleet.losses import scaled_gains
from yolofleet.models import build_model
from yolofleet.specs.hyperparameters import AUGMENTATIONS, AugmentationStep, Hyperparameters, recipe
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelChoice
from yolofleet.training.loop.schedule import Schedule, averaging_decay
from yolofleet.training.loop.update import (
    apply_settings,
    build_optimizer,
    group_parameters,
    load_moment_state,
    moment_state,
)
from yolofleet.training.setup.builders import build_loss, class_weights, training_stream


@pytest.fixture(scope="module")
def drawn_shards(small_data: Path) -> Path:
    return small_data / "train"


@AUGMENTATIONS.register("test-invert")
class Invert(AugmentationStep):
    def apply(self, image: Any, boxes: Any, classes: Any, generator: Any) -> Any:
        return 255 - image, boxes, classes


SCHEDULE = {
    "lr0": 0.02,
    "lrf": 0.5,
    "schedule": "linear",
    "momentum": 0.9,
    "warmup_epochs": 20.0,
    "warmup_min_steps": 10,
    "warmup_most_share": 0.01,
    "warmup_momentum": 0.5,
    "warmup_bias_lr": 0.05,
}
DECAY = {"weight_decay": 0.001}
OPTIMIZER = {"optimizer": "adam"}
AVERAGE = {"ema_decay": 0.99, "ema_ramp_steps": 100.0}
LOSS = {
    "box": 0.1,
    "cls": 0.6,
    "cls_pw": 2.0,
    "obj": 1.4,
    "obj_pw": 2.0,
    "anchor_t": 2.0,
    "fl_gamma": 1.5,
    "label_smoothing": 0.1,
    "class_balance": 0.5,
}
STREAM = {
    "hsv_h": 0.5,
    "hsv_s": 0.1,
    "hsv_v": 0.1,
    "degrees": 30.0,
    "translate": 0.5,
    "scale": 0.1,
    "shear": 10.0,
    "perspective": 0.001,
    "flipud": 1.0,
    "fliplr": 0.0,
    "mosaic": 0.0,
    "mosaic9_share": 1.0,
    "mixup": 1.0,
    "paste_in": 1.0,
    "extra_augmentations": [{"name": "test-invert"}],
    "close_mosaic_share": 1.0,
    "multi_scale": 0.5,
    "image_weights": 1.0,
}


def changed(**values: Any) -> Hyperparameters:
    return Hyperparameters.parse(recipe("tiny").document() | values, source="test")


def narrow(name: str = "yolov7-tiny", num_classes: int = 3) -> Any:
    torch.manual_seed(0)
    return build_model(ModelChoice(name=name, transition_width=0.125, hidden_width=0.125), num_classes)


def test_every_hyperparameter_is_tried() -> None:
    assert {*SCHEDULE, *OPTIMIZER, *DECAY, *AVERAGE, *LOSS, *STREAM} == set(Hyperparameters.model_fields)


@pytest.mark.parametrize(("name", "value"), SCHEDULE.items())
def test_the_schedule_follows(name: str, value: Any) -> None:
    def settings(hyperparameters: Hyperparameters) -> list[Any]:
        schedule = Schedule(hyperparameters, num_steps=20_000, steps_per_epoch=100)
        return [schedule.at(step) for step in range(0, 20_000, 50)]

    assert settings(changed(**{name: value})) != settings(recipe("tiny"))


@pytest.mark.parametrize(("name", "value"), AVERAGE.items())
def test_the_average_follows(name: str, value: Any) -> None:
    assert averaging_decay(changed(**{name: value}), 500) != averaging_decay(recipe("tiny"), 500)


@pytest.mark.parametrize(("batch", "expected"), [(16, 0.00025), (64, 0.001), (128, 0.002)])
def test_only_convolution_weights_decay_and_by_the_global_batch(batch: int, expected: float) -> None:
    model = narrow()
    optimizer = build_optimizer(model, changed(**DECAY), batch)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"decayed": pytest.approx(expected), "plain": 0.0, "biases": 0.0}
    assert all(group["nesterov"] for group in optimizer.param_groups)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_has_the_recipe_s_momentum_from_its_first_step(name: str, kind: type[torch.optim.Optimizer]) -> None:
    recipe_with = changed(optimizer=name, momentum=0.9, warmup_min_steps=10)
    optimizer = build_optimizer(narrow(), recipe_with, 128)
    assert type(optimizer) is kind
    schedule = Schedule(recipe_with, num_steps=1000, steps_per_epoch=100)
    assert {schedule.at(step).momentum for step in (0, 50, 999)} == {0.9}
    apply_settings(optimizer, schedule.at(0))
    assert all(group["betas"] == (0.9, 0.999) and "momentum" not in group for group in optimizer.param_groups)
    # Decay is scaled where it is a part of the gradient, which is a sum over the batch; AdamW's is not.
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == pytest.approx([0.001 if name == "adam" else 0.0005, 0.0, 0.0])


def test_moments_of_one_optimizer_are_none_of_another() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    kept = {}
    for name in ("sgd", "adam"):
        optimizer = build_optimizer(model, changed(optimizer=name), 64)
        model(torch.rand(2, 3, 4, 4)).square().sum().backward()
        optimizer.step()
        kept[name] = moment_state(model, optimizer)
    assert set(kept["sgd"]) == {name for name, _ in model.named_parameters()}
    assert not kept["sgd"].keys() & kept["adam"].keys()
    for name, other in (("sgd", "adam"), ("adam", "sgd")):
        optimizer = build_optimizer(model, changed(optimizer=name), 64)
        load_moment_state(model, optimizer, kept[other], num_updates=1)
        assert moment_state(model, optimizer) == {}
        load_moment_state(model, optimizer, kept[name], num_updates=7)
        assert moment_state(model, optimizer).keys() == kept[name].keys()
        counts = {float(state["step"]) for state in optimizer.state.values() if "step" in state}
        assert counts == (set() if name == "sgd" else {7.0})


# Origin: parameter groups that the published trainer prints for its models, commit a207844.
@pytest.mark.parametrize(
    ("name", "biases", "decayed", "plain"),
    [
        ("yolov7", 95, 95, 98),
        ("yolov7-tiny", 58, 58, 61),
        ("yolov7-x", 108, 108, 111),
        ("yolov7-w6", 115, 115, 115),
        ("yolov7-e6", 153, 153, 153),
        ("yolov7-d6", 175, 175, 175),
        ("yolov7-e6e", 252, 252, 252),
    ],
)
def test_parameter_groups_are_the_published_ones(name: str, biases: int, decayed: int, plain: int) -> None:
    with torch.device("meta"):
        groups = group_parameters(build_model(name))
    counts = {name: len(members) for name, members in groups.items()}
    # Implicit additions and multiplications are one group there and here; published P6 counts leave them out.
    assert (counts["biases"], counts["decayed"]) == (biases, decayed)
    assert counts["plain"] == plain


# Origin: the published implementation, commit a207844: biases by level of a model of 80 classes, and batch norm.
@pytest.mark.parametrize(("name", "strides"), [("yolov7-tiny", (8, 16, 32)), ("yolov7-w6", (8, 16, 32, 64))])
def test_a_model_starts_with_the_published_biases_and_batch_norm(name: str, strides: tuple[int, ...]) -> None:
    model = narrow(name, num_classes=80)
    objectness = {8: -6.6846, 16: -5.2983, 32: -3.9120, 64: -2.5257}
    assert model.strides == strides
    for level, conv in zip([*strides, *strides], [*model.head.lead, *model.head.auxiliary], strict=False):
        random = 1 / conv.in_channels**0.5  # torch draws every bias from between this and its negative
        bias = conv.bias.detach().view(3, 85)
        assert (bias[:, 4] - objectness[level]).abs().max() <= random + 1e-4
        assert (bias[:, 5:] + 4.8804).abs().max() <= random + 1e-4
        assert bias[:, :4].abs().max() <= random
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(layers) > 20
    assert {(layer.eps, layer.momentum) for layer in layers} == {(1e-3, 0.03)}


def test_the_optimizer_uses_the_step_s_settings_by_group() -> None:
    model = narrow()
    optimizer = build_optimizer(model, recipe("p5"), 64)
    schedule = Schedule(recipe("p5"), num_steps=300 * 1000, steps_per_epoch=1000)
    for step in (0, 1, 1500, 3000, 150_000, 299_999):
        settings = schedule.at(step)
        apply_settings(optimizer, settings)
        found = {group["name"]: (group["lr"], group["momentum"]) for group in optimizer.param_groups}
        other = (settings.learning_rate, settings.momentum)
        assert found == {"decayed": other, "plain": other, "biases": (settings.bias_learning_rate, settings.momentum)}
    assert schedule.at(0).bias_learning_rate == 0.1
    assert schedule.at(0).learning_rate == 0.0


def loss_of(hyperparameters: Hyperparameters) -> float:
    model = narrow()
    loss = build_loss(model, hyperparameters, 64, class_counts=(100, 10, 1))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.9], [0, 1, 0.3, 0.3, 0.9, 0.25], [1, 2, 0.6, 0.6, 0.2, 0.2]])
    return float(loss(model(images), targets, (64, 64)).total.detach())


@pytest.mark.parametrize(("name", "value"), LOSS.items())
def test_the_loss_follows(name: str, value: Any) -> None:
    assert loss_of(changed(**{name: value})) != pytest.approx(loss_of(recipe("tiny")), rel=1e-5)


@pytest.mark.parametrize("image_size", [320, 640, 1280])
@pytest.mark.parametrize("num_classes", [1, 20, 80])
@pytest.mark.parametrize(("model", "name"), [("yolov7", "p5"), ("yolov7-w6", "p6"), ("yolov7-tiny", "tiny")])
def test_gains_are_scaled_by_levels_classes_and_image_size(
    image_size: int, num_classes: int, model: str, name: Any
) -> None:
    values, levels = recipe(name), 4 if model == "yolov7-w6" else 3
    gains = scaled_gains(values.document(), num_classes, levels, image_size)
    assert gains["box"] == pytest.approx(values.box * 3 / levels)
    assert gains["cls"] == pytest.approx(values.cls * num_classes / 80 * 3 / levels)
    assert gains["obj"] == pytest.approx(values.obj * (image_size / 640) ** 2 * 3 / levels)


def test_class_weights_balance_the_classes() -> None:
    counts = (1000, 100, 10, 0)
    assert class_weights(counts, 0.0) is None
    full = class_weights(counts, 1.0)
    assert full is not None
    shares = [weight * count for weight, count in zip(full, counts, strict=True)]
    assert shares[:3] == pytest.approx([1110 / 3] * 3)  # every class that is there counts the same
    half = class_weights(counts, 0.5)
    assert half is not None
    assert sum(w * n for w, n in zip(half, counts, strict=True)) == pytest.approx(1110)  # the term keeps its size
    assert half[1] / half[0] == pytest.approx(10**0.5)


def first_batches(shards: Path, hyperparameters: dict[str, Any]) -> list[Any]:
    job = JobSpec.parse(
        {
            "name": "run",
            "model": {"name": "yolov7-tiny"},
            "data": {"train": str(shards), "val": str(shards), "image_size": 96},
            "recipe": "tiny",
            "hyperparameters": hyperparameters,
            "global_batch_size": 8,
            "micro_batch_size": 4,
        },
        source="test",
    )
    dataset = ShardDataset(shards)
    schedule = Schedule(job.resolved_hyperparameters(), num_steps=100, steps_per_epoch=5)
    stream = training_stream(job, dataset, schedule)
    return [stream.micro_batch(step, index) for step in range(4) for index in range(2)]


@pytest.fixture(scope="module")
def plain_digests(drawn_shards: Path) -> list[str]:
    return [batch.digest() for batch in first_batches(drawn_shards, {})]


@pytest.mark.parametrize(("name", "value"), STREAM.items())
def test_the_stream_follows(name: str, value: Any, drawn_shards: Path, plain_digests: list[str]) -> None:
    assert [batch.digest() for batch in first_batches(drawn_shards, {name: value})] != plain_digests


def test_the_stream_is_the_same_when_nothing_changes(drawn_shards: Path, plain_digests: list[str]) -> None:
    assert [batch.digest() for batch in first_batches(drawn_shards, {})] == plain_digests


def test_image_sizes_change_with_the_step_and_only_with_it(drawn_shards: Path) -> None:
    batches = first_batches(drawn_shards, {"multi_scale": 0.5})
    sides = {(batch.step, batch.images.shape[-1]) for batch in batches}
    assert len(sides) == 4  # both micro-batches of a step have the same size
    assert len({side for _, side in sides}) > 1
    assert all(side % 32 == 0 and 32 <= side <= 160 for _, side in sides)


def test_closed_mosaic_is_plain_images(drawn_shards: Path) -> None:
    plain = {"mosaic": 0.0, "mixup": 0.0, "paste_in": 0.0}
    closed = first_batches(drawn_shards, {"close_mosaic_share": 1.0})
    assert [batch.digest() for batch in closed] == [batch.digest() for batch in first_batches(drawn_shards, plain)]
