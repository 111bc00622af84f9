"""The loss of a job: the published terms with their gains scaled, and the label assignment that the job chooses."""

from __future__ import annotations

from collections.abc import Sequence

from yolofleet.losses import DetectionLoss, scaled_gains
from yolofleet.models.detector import Detector
from yolofleet.specs.assignment import AssignmentSpec
from yolofleet.specs.hyperparameters import Hyperparameters


def build_loss(
    model: Detector,
    hyperparameters: Hyperparameters,
    image_size: int,
    assignment: AssignmentSpec | None = None,
    class_counts: Sequence[int] | None = None,
) -> DetectionLoss:
    """Return the loss that fits the model's heads, with gains scaled as published.

    Args:
        model: The model that is trained.
        hyperparameters: Gains and the loss's other numbers.
        image_size: Side of the training pictures in pixels.
        assignment: How boxes find their cells; by default as published for the model.
        class_counts: Boxes of each class in the training set, for ``class_balance``.
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
        class_weights=class_weights(class_counts, hyperparameters.class_balance) if class_counts else None,
    )


def class_weights(class_counts: Sequence[int], balance: float) -> tuple[float, ...] | None:
    """Return what the boxes of each class count in the class term: frequency ** -balance, 1 for the average box.

    The published implementation derives inverse frequencies too, but only draws images by them.

    Args:
        class_counts: Boxes of each class.
        balance: 0 leaves every class alike (None is returned), 1 lets every class count the same in all.
    """
    total = sum(class_counts)
    if balance == 0 or total == 0:
        return None
    raw = [(total / count) ** balance if count else 0.0 for count in class_counts]
    mean = sum(weight * count for weight, count in zip(raw, class_counts, strict=True)) / total
    return tuple(weight / mean if weight else 1.0 for weight in raw)  # a class without boxes is never asked for
