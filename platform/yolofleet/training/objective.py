"""The loss of a job: the published terms with their gains scaled, and the label assignment that the job chooses."""

from __future__ import annotations

from yolofleet.losses import DetectionLoss
from yolofleet.losses.gains import scaled_gains
from yolofleet.models.detector import Detector
from yolofleet.specs.assignment import AssignmentSpec
from yolofleet.specs.hyperparameters import Hyperparameters


def build_loss(
    model: Detector, hyperparameters: Hyperparameters, image_size: int, assignment: AssignmentSpec | None = None
) -> DetectionLoss:
    """Return the loss that fits the model's heads, with gains scaled as published.

    Args:
        model: The model that is trained.
        hyperparameters: Gains and the loss's other numbers.
        image_size: Side of the training pictures in pixels.
        assignment: How boxes find their cells; by default as published for the model.
    """
    chosen = assignment or AssignmentSpec()
    return DetectionLoss(
        anchors=model.anchors,
        strides=model.strides,
        num_classes=model.num_classes,
        hyperparameters=scaled_gains(hyperparameters.document(), model.num_classes, len(model.strides), image_size),
        assigner=chosen.assigner or ("coarse_to_fine" if model.num_auxiliary_levels else "none"),
        matching=chosen.matching,
        constraint=chosen.constraint,
        auxiliary_weight=chosen.auxiliary_weight,
        relaxation=chosen.relaxation,
    )
