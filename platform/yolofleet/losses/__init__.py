"""Label assignment and the detection loss, in plain torch: what other rooms may import.

docs/label-assignment.md shows the settings. `matching.match_image` is the paper's idea on one screen.
"""

from yolofleet.losses.assigners import Assignment, Scene, register_assigner
from yolofleet.losses.candidates import Candidates
from yolofleet.losses.detection_loss import DetectionLoss, LossResult
from yolofleet.losses.terms import scaled_gains

__all__ = ["Assignment", "Candidates", "DetectionLoss", "LossResult", "Scene", "register_assigner", "scaled_gains"]
