"""The numbers of the loss: read from the hyper-parameters, scaled, and checked once when the loss is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Matching = Literal["dynamic", "fixed"]

MATCHINGS: tuple[Matching, ...] = get_args(Matching)

# The published name of each number: its attribute here, and the lowest and highest value.
HYPERPARAMETERS = {
    "box": ("box_gain", 0.0, math.inf),
    "cls": ("class_gain", 0.0, math.inf),
    "obj": ("objectness_gain", 0.0, math.inf),
    "cls_pw": ("class_positive_weight", 0.0, math.inf),
    "obj_pw": ("objectness_positive_weight", 0.0, math.inf),
    "fl_gamma": ("focal_gamma", 0.0, math.inf),
    "anchor_t": ("anchor_ratio_limit", 1.0, math.inf),
    "label_smoothing": ("label_smoothing", 0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The numbers of the detection loss; gains are already scaled (`yolofleet.losses.scaled_gains`)."""

    box_gain: float
    """Factor of the box term (`box`)."""
    class_gain: float
    """Factor of the class term (`cls`)."""
    objectness_gain: float
    """Factor of the objectness term (`obj`)."""
    class_positive_weight: float = 1.0
    """Weight of the positive class in the class term (`cls_pw`)."""
    objectness_positive_weight: float = 1.0
    """Weight of positives in the objectness term (`obj_pw`)."""
    focal_gamma: float = 0.0
    """Exponent of the focal loss on both cross-entropies; 0 is plain cross-entropy (`fl_gamma`)."""
    anchor_ratio_limit: float = 4.0
    """A box and an anchor fit when their widths and their heights differ by less than this factor (`anchor_t`)."""
    label_smoothing: float = 0.0
    """Share of a class target given up evenly: targets are 1 - s/2 and s/2 (`label_smoothing`)."""

    def __post_init__(self) -> None:
        for key, (name, lowest, highest) in HYPERPARAMETERS.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and lowest <= value <= highest):
                raise ValueError(f"hyper-parameter {key} is {value}; it must be a number from {lowest} to {highest}")

    @classmethod
    def from_hyperparameters(cls, hyperparameters: Mapping[str, float]) -> LossSettings:
        """Read the published names; `box`, `cls` and `obj` must be there, keys that are not the loss's are ignored.

        Raises:
            ValueError: A gain is missing, or a value is out of range.
        """
        missing = [key for key in ("box", "cls", "obj") if key not in hyperparameters]
        if missing:
            raise ValueError(
                f"hyper-parameters for the loss lack {', '.join(missing)}; the recipes p5, p6 and tiny have them"
            )
        known = [(key, name) for key, (name, _, _) in HYPERPARAMETERS.items() if key in hyperparameters]
        return cls(**{name: float(hyperparameters[key]) for key, name in known})


def level_balance(num_levels: int) -> tuple[float, ...]:
    """The published factor of each level's objectness mean: fine levels have many cells and few objects."""
    if num_levels == 3:
        return (4.0, 1.0, 0.4)
    factors = (4.0, 1.0, 0.25, 0.06, 0.02)
    if not 1 <= num_levels <= len(factors):
        raise ValueError(f"objectness balance is known for 1 to {len(factors)} levels, the detector has {num_levels}")
    return factors[:num_levels]


def scaled_gains(
    hyperparameters: Mapping[str, float], num_classes: int, num_levels: int, image_size: int
) -> dict[str, float]:
    """Scale the recipe's gains as the published trainer does.

    box *= 3 / levels; cls *= classes / 80 x 3 / levels; obj *= (image size / 640)^2 x 3 / levels. The terms are sums
    over levels, the class term is a mean over classes, and the objectness term a mean over cells, whose number grows
    with the square of the image size.

    Args:
        hyperparameters: A recipe with `box`, `cls` and `obj`; every other key is passed through.
        num_classes: Classes of the detector.
        num_levels: Lead levels of the detector (3 for P5, 4 for P6).
        image_size: Side of the training images in pixels; for non-square images the longer side.

    Returns:
        A new mapping; the one given is unchanged.
    """
    share = 3.0 / num_levels
    return {
        **hyperparameters,
        "box": hyperparameters["box"] * share,
        "cls": hyperparameters["cls"] * num_classes / 80.0 * share,
        "obj": hyperparameters["obj"] * (image_size / 640.0) ** 2 * share,
    }
