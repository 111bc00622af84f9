"""The models: build one from its name or block table, and turn a trained one into its deployed form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolofleet.models.network import Network
    from yolofleet.specs.model import ModelChoice, ModelTable

__all__ = ["build_model", "deploy"]


def build_model(
    name_or_spec: str | Path | ModelChoice | ModelTable, num_classes: int = 80, *, deployed: bool = False
) -> Network:
    """Build a detector with fresh weights.

    Args:
        name_or_spec: A model of the zoo, a job's model choice, a block table, or the path of a YAML table.
        num_classes: Classes to predict.
        deployed: Build the deployed form, to load deployed weights into.

    Returns:
        The detector, in training mode. In training mode, and by ``model.raw(images)`` in either, it maps images
        (B, 3, H, W) in 0..1 to the raw head tensors (B, anchors, H, W, 5 + classes), lead levels then auxiliary
        ones; in evaluation mode to decoded predictions (B, boxes, 5 + classes), boxes cx cy w h in pixels.

    Raises:
        UserError: The model is not known, or its table does not make a valid model.
    """
    from yolofleet.models.network import Network
    from yolofleet.models.zoo import resolve

    return Network(resolve(name_or_spec), num_classes, deployed=deployed)


def deploy(model: Network) -> Network:
    """Return the deployed form of a detector; the original is left as it is.

    Batch norm, RepConv and implicit knowledge are folded into the convolutions, auxiliary heads are dropped, and the
    result is proven against the original. A model that is deployed already is returned as it is.

    Raises:
        DeploymentError: The folded model does not compute what the original does.
    """
    from yolofleet.models.deployment import deployed_form

    return deployed_form(model)
