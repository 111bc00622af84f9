"""The forms of one detector, compared on random pictures: as trained, as deployed, as ONNX Runtime runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yolofleet.errors import UserError

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector
    from yolofleet.export.comparison import Comparison

FORM_TOLERANCE = 1e-4
"""Largest difference of raw predictions between training form and deployed form, as a share of their range."""


class FormError(UserError):
    """Two forms of a detector cannot be compared here."""


def training_form_difference(folder: Path, detector: Detector) -> float:
    """Return by how much the deployed weights of a package differ from its training form, as a share of the range.

    Args:
        folder: The detector package; it holds the training form.
        detector: The package, loaded.

    Raises:
        UserError: The training form cannot be read, is not this model's, or computes something else.
    """
    from yolofleet.models import build_model
    from yolofleet.models.deployment import prove, random_images
    from yolofleet.models.weights import read_checkpoint
    from yolofleet.training.initial import TRAINING_FORM
    from yolofleet.training.state import load_strictly

    model = build_model(detector.card.model, len(detector.card.classes))
    state = read_checkpoint(folder / TRAINING_FORM)
    load_strictly(model, {name: state[name] for name in state if not name.endswith("num_batches_tracked")})
    model.to(detector.device).eval()
    return prove(model, detector.model, random_images(detector.model), FORM_TOLERANCE)


def onnx_comparison(path: Path, detector: Detector) -> Comparison:
    """Run an ONNX file beside torch, with suppression inside or without.

    Args:
        path: A file that `yolofleet export` made of this detector.
        detector: The same detector in torch.

    Raises:
        FormError: It cannot be compared: it is quantised, or onnxruntime is not installed.
        UserError: The file cannot be run, or was made of other weights.
    """
    from importlib.util import find_spec

    if find_spec("onnxruntime") is None:
        raise FormError("onnxruntime is not installed; pip install 'yolofleet[export]'")
    from yolofleet.export.onnx_session import OnnxNetwork
    from yolofleet.export.settings import InputShape, Thresholds
    from yolofleet.export.verification import noise, verify

    card = OnnxNetwork(path).card
    if card.weights_sha256 != detector.card.weights_sha256:
        raise UserError(f"{path.name} was made of other weights ({card.weights_sha256[:12]}...): export it again")
    if card.quantized:
        raise FormError(f"{path.name} is quantised: its AP tells what it is worth, not its numbers")
    shape = InputShape(batch=1, image_size=card.image_size, dynamic=card.dynamic)
    thresholds = Thresholds(**card.suppression.model_dump()) if card.suppression is not None else None
    return verify(path, "onnx", detector, thresholds, noise(shape, max(card.strides)))
