"""Hyper-parameters of training: the published recipes; a job may override any value.

Keys keep the names of the published files. Each recipe is a short YAML file beside this module. Those of augmentation
are a class of their own, which `yolofleet.data` uses as it is; a step of one's own is a class registered in
`AUGMENTATIONS`, and its fields are what a job may set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, create_model

from yolofleet.core.errors import UserError
from yolofleet.core.extension_points import ExtensionPoint
from yolofleet.specs.base import Spec
from yolofleet.specs.yaml_document import parse_yaml

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RecipeName = Literal["p5", "p6", "tiny", "custom"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class AugmentationStep(Spec, ABC):
    """A step of augmentation that a plugin adds, after the built-in ones; its fields are its parameters in a job.

    A sample must stay a pure function of its position in the stream: draw random numbers from ``generator`` alone and
    keep nothing from one sample to the next.
    """

    name: str
    """Name under which the step is registered."""
    share: Share = 1.0
    """Share of the samples that it is applied to."""

    @abstractmethod
    def apply(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float64],
        classes: NDArray[np.int64],
        generator: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64]]:
        """Return the image and the targets of a sample, changed.

        Args:
            image: (side, side, 3) RGB; it may be changed in place, and the returned one must have the same shape.
            boxes: (n, 4) x1, y1, x2, y2 in pixels; the returned ones are clipped to the image.
            classes: (n,) class indices.
            generator: The sample's random numbers.
        """


AUGMENTATIONS: ExtensionPoint[type[AugmentationStep]] = ExtensionPoint("augmentation")
"""Steps by name: ``@AUGMENTATIONS.register("NAME")`` before a class registers it."""


def _read_step(value: Any) -> Any:
    """Build a step from its name and parameters; the class that is registered under the name checks them."""
    if isinstance(value, AugmentationStep):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a mapping with the name of an augmentation and its parameters is needed: {name: NAME}")
    try:
        return AUGMENTATIONS.get(value["name"]).parse(value, source=value["name"])
    except UserError as error:
        raise ValueError(str(error)) from None


class Augmentation(Spec):
    """How samples are augmented; the defaults are the recipe of the large models."""

    hsv_h: Share = 0.015
    """Range of the hue shift, as a share of the circle."""
    hsv_s: Share = 0.7
    """Range of the saturation gain."""
    hsv_v: Share = 0.4
    """Range of the brightness gain."""
    degrees: NotNegative = 0.0
    """Range of rotation, in degrees."""
    translate: Share = 0.2
    """Range of translation, as a share of the image."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Range of the size change: from 1 - scale to 1.1 + scale, as published."""
    shear: NotNegative = 0.0
    """Range of shear, in degrees."""
    perspective: Annotated[float, Field(ge=0, le=0.001)] = 0.0
    """Range of perspective."""
    flipud: Share = 0.0
    """Share of images turned upside down."""
    fliplr: Share = 0.5
    """Share of images mirrored."""
    mosaic: Share = 1.0
    """Share of samples made of several images."""
    mosaic9_share: Share = 0.2
    """Share of the mosaics that hold nine images rather than four."""
    mixup: Share = 0.15
    """Share of samples blended with another."""
    paste_in: Share = 0.15
    """Share of samples that receive pasted objects (data with polygons only)."""
    extra_augmentations: tuple[Annotated[SerializeAsAny[AugmentationStep], BeforeValidator(_read_step)], ...] = ()
    """Your own registered steps, applied after the others, in this order: a list of {name: NAME, share: SHARE}."""

    @classmethod
    def none(cls) -> Augmentation:
        """Return an augmentation that changes nothing: the image alone, letterboxed."""
        still = Augmentation(translate=0.0, scale=0.0, hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, fliplr=0.0, mosaic9_share=0.0)
        return still.without_composition()

    def without_composition(self) -> Self:
        """Return the augmentation of a single image: without mosaic, mixup and paste-in."""
        return self.model_copy(update={"mosaic": 0.0, "mixup": 0.0, "paste_in": 0.0})


class Hyperparameters(Augmentation):
    """One complete set of hyper-parameters."""

    lr0: Positive
    """Learning rate at the end of warm-up, for a global batch whose losses are summed as published."""
    lrf: Share
    """Final learning rate as a share of lr0."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls from lr0 to lr0 * lrf."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """What moves the weights: SGD with Nesterov momentum, Adam, or AdamW."""
    momentum: Share
    """SGD's Nesterov momentum after warm-up; Adam's first beta, from the first step."""
    weight_decay: NotNegative
    """Decay of convolution weights at a nominal batch of 64; scaled with the global batch, but not for AdamW."""
    warmup_epochs: NotNegative
    """Length of the warm-up in epochs."""
    warmup_min_steps: Annotated[int, Field(ge=0)] = 1000
    """The warm-up takes at least this many steps."""
    warmup_most_share: Positive = 0.5
    """The warm-up takes at most this share of the run's steps; with more than 1, a short run may end during it."""
    warmup_momentum: Share
    """SGD's momentum at step 0."""
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
    """How much more rare classes count in the class term: a class has the weight (1 / frequency) to this power."""
    multi_scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Range of the image size: every step draws one, from 1 - multi_scale to 1 + multi_scale of the job's."""
    image_weights: Share = 0.0
    """How much more often images with rare classes are drawn: 0 draws every image once an epoch, 1 by its weight."""
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
