"""Loss gains scaled to classes, levels and image size, so that one recipe suits every detector."""

from __future__ import annotations

from collections.abc import Mapping


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
