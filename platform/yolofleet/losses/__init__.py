"""Label assignment and the detection loss, in plain torch.

`DetectionLoss` is the whole interface; docs/label-assignment.md shows its settings.
"""

from yolofleet.losses.detection_loss import DetectionLoss, LossResult

__all__ = ["DetectionLoss", "LossResult"]
