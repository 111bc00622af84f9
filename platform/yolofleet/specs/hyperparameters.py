"""Hyper-parameters of training: the published recipes ``p5``, ``p6`` and ``tiny``; a job may override any value.

Keys keep the names that the field knows from the published files. Each recipe is a short YAML file beside this module.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from yolofleet.specs.base import Spec
from yolofleet.specs.document import parse_yaml

RecipeName = Literal["p5", "p6", "tiny"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Hyperparameters(Spec):
    """One complete set of hyper-parameters."""

    lr0: Positive
    """Learning rate at the end of warm-up, for a global batch whose losses are summed as published."""
    lrf: Share
    """Final learning rate as a share of lr0."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls from lr0 to lr0 * lrf."""
    momentum: Share
    """SGD's Nesterov momentum after warm-up."""
    weight_decay: NotNegative
    """Decay of convolution weights at a nominal batch of 64; scaled with the global batch."""
    warmup_epochs: NotNegative
    """Length of the warm-up in epochs."""
    warmup_min_steps: Annotated[int, Field(ge=0)] = 1000
    """The warm-up takes at least this many steps, but never more than half of the run."""
    warmup_momentum: Share
    """Momentum at step 0."""
    warmup_bias_lr: NotNegative
    """Learning rate of the biases at step 0."""
    box: NotNegative
    """Gain of the box term, before scaling by the number of levels."""
    cls: NotNegative
    """Gain of the class term, before scaling by classes and levels."""
    cls_pw: Positive = 1.0
    """Weight of positives in the class term."""
    obj: NotNegative
    """Gain of the objectness term, before scaling by image size and levels."""
    obj_pw: Positive = 1.0
    """Weight of positives in the objectness term."""
    anchor_t: Annotated[float, Field(gt=1)] = 4.0
    """Largest ratio between a box's and an anchor's sides for the pair to be a candidate."""
    fl_gamma: NotNegative = 0.0
    """Focal loss exponent; 0 is plain binary cross entropy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Smoothing of the class targets."""
    class_balance: Share = 0.0
    """How far rare classes count more in the class term: a class weighs its inverse frequency to this power."""
    multi_scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Range of the image size: every step draws one, from 1 - multi_scale to 1 + multi_scale of the job's."""
    image_weights: Share = 0.0
    """How far images with rare classes are drawn more often: 0 draws every image once an epoch, 1 by its weight."""
    hsv_h: Share
    """Range of the hue shift, as a share of the circle."""
    hsv_s: Share
    """Range of the saturation gain."""
    hsv_v: Share
    """Range of the brightness gain."""
    degrees: NotNegative = 0.0
    """Range of rotation, in degrees."""
    translate: Share
    """Range of translation, as a share of the image."""
    scale: Annotated[float, Field(ge=0, lt=1)]
    """Range of the size change: from 1 - scale to 1.1 + scale, as published."""
    shear: NotNegative = 0.0
    """Range of shear, in degrees."""
    perspective: Annotated[float, Field(ge=0, le=0.001)] = 0.0
    """Range of perspective."""
    flipud: Share = 0.0
    """Share of images turned upside down."""
    fliplr: Share = 0.5
    """Share of images mirrored."""
    mosaic: Share
    """Share of samples made of several images."""
    mosaic9_share: Share = 0.2
    """Share of the mosaics that hold nine images rather than four."""
    mixup: Share
    """Share of samples blended with another."""
    paste_in: Share
    """Share of samples that receive pasted objects (data with polygons only)."""
    close_mosaic_share: Share = 0.0
    """The last part of the run, as a share of its steps, trained without mosaic, mixup and paste-in."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Decay of the averaged weights once it has ramped up."""
    ema_ramp_steps: Positive = 2000.0
    """Time constant of that ramp, in steps: decay * (1 - exp(-step / ramp))."""


HyperparameterOverrides = create_model(
    "HyperparameterOverrides",
    __base__=Spec,
    __doc__="Hyper-parameters that a job changes; the others are its recipe's.",
    **{name: (field.rebuild_annotation() | None, None) for name, field in Hyperparameters.model_fields.items()},  # type: ignore[call-overload]
)


@cache
def recipe(name: RecipeName) -> Hyperparameters:
    """Return a published recipe by name."""
    text = resources.files("yolofleet.specs").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    return Hyperparameters.parse(parse_yaml(text, source=f"recipe {name}"), source=f"recipe {name}")


def merged(name: RecipeName, overrides: dict[str, Any]) -> Hyperparameters:
    """Return the recipe with some values overridden."""
    return Hyperparameters.parse(recipe(name).document() | overrides, source=f"hyperparameters over recipe {name}")
