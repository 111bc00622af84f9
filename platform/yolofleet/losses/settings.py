"""What the loss takes from the hyper-parameters, checked once when the loss is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Assigner = Literal["none", "independent", "lead", "coarse_to_fine"]
Matching = Literal["dynamic", "fixed"]

ASSIGNERS: tuple[Assigner, ...] = get_args(Assigner)
MATCHINGS: tuple[Matching, ...] = get_args(Matching)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The numbers of the detection loss; gains are already scaled (`yolofleet.losses.gains.scaled_gains`).

    Attributes:
        box_gain: Factor of the box term (`box`).
        class_gain: Factor of the class term (`cls`).
        objectness_gain: Factor of the objectness term (`obj`).
        class_positive_weight: Weight of the positive class in the class term (`cls_pw`).
        objectness_positive_weight: Weight of positives in the objectness term (`obj_pw`).
        focal_gamma: Exponent of the focal loss on both cross-entropies; 0 is plain cross-entropy (`fl_gamma`).
        anchor_ratio_limit: A box and an anchor fit when their widths and their heights differ by less than this
            factor (`anchor_t`).
        label_smoothing: Share of a class target given up evenly: targets are 1 - s/2 and s/2 (`label_smoothing`).
    """

    box_gain: float
    class_gain: float
    objectness_gain: float
    class_positive_weight: float = 1.0
    objectness_positive_weight: float = 1.0
    focal_gamma: float = 0.0
    anchor_ratio_limit: float = 4.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        limits = {
            "box": (self.box_gain, 0.0, math.inf),
            "cls": (self.class_gain, 0.0, math.inf),
            "obj": (self.objectness_gain, 0.0, math.inf),
            "cls_pw": (self.class_positive_weight, 0.0, math.inf),
            "obj_pw": (self.objectness_positive_weight, 0.0, math.inf),
            "fl_gamma": (self.focal_gamma, 0.0, math.inf),
            "anchor_t": (self.anchor_ratio_limit, 1.0, math.inf),
            "label_smoothing": (self.label_smoothing, 0.0, 1.0),
        }
        for key, (value, lowest, highest) in limits.items():
            if not (math.isfinite(value) and lowest <= value <= highest):
                raise ValueError(f"hyper-parameter {key} is {value}; it must be a number from {lowest} to {highest}")

    @classmethod
    def from_hyperparameters(cls, hyperparameters: Mapping[str, float]) -> LossSettings:
        """Read the published names; keys of other parts of the recipe (`lr0`, `mosaic`, ...) are not the loss's.

        Args:
            hyperparameters: Must hold `box`, `cls` and `obj`; may hold `cls_pw`, `obj_pw`, `fl_gamma`, `anchor_t`
                and `label_smoothing`.

        Raises:
            ValueError: A gain is missing, or a value is out of range.
        """
        missing = [key for key in ("box", "cls", "obj") if key not in hyperparameters]
        if missing:
            raise ValueError(
                f"hyper-parameters for the loss lack {', '.join(missing)}; the recipes p5, p6 and tiny have them"
            )
        names = {
            "box": "box_gain",
            "cls": "class_gain",
            "obj": "objectness_gain",
            "cls_pw": "class_positive_weight",
            "obj_pw": "objectness_positive_weight",
            "fl_gamma": "focal_gamma",
            "anchor_t": "anchor_ratio_limit",
            "label_smoothing": "label_smoothing",
        }
        return cls(**{name: float(hyperparameters[key]) for key, name in names.items() if key in hyperparameters})


def level_balance(num_levels: int) -> tuple[float, ...]:
    """Factor of each level's objectness mean: fine levels have many cells and few objects.

    The values are the published implementation's: 4.0, 1.0, 0.4 for three levels, else 4.0, 1.0, 0.25, 0.06, 0.02.

    Raises:
        ValueError: More levels than there are published factors.
    """
    if num_levels == 3:
        return (4.0, 1.0, 0.4)
    factors = (4.0, 1.0, 0.25, 0.06, 0.02)
    if not 1 <= num_levels <= len(factors):
        raise ValueError(f"objectness balance is known for 1 to {len(factors)} levels, the detector has {num_levels}")
    return factors[:num_levels]
