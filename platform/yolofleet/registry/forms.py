"""The forms of one detector, compared on random pictures: as trained, as deployed, as ONNX Runtime runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yolofleet.errors import UserError

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector

FORM_TOLERANCE = 1e-4
"""Largest difference of raw predictions between training form and deployed form, as a share of their range."""
ONNX_TOLERANCE = 1e-3
"""Largest difference of scores, and of boxes as a share of the picture, between torch and ONNX Runtime."""


class FormError(UserError):
    """Two forms of a detector cannot be compared, or do not compute the same."""


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


def onnx_difference(path: Path, detector: Detector) -> float:
    """Return by how much ONNX Runtime's predictions differ from torch's: scores, and boxes as a share of the picture.

    Args:
        path: An ONNX file that takes pictures (B, 3, H, W) in 0..1 and gives decoded predictions (B, N, 5 + C).
        detector: The same detector in torch.

    Raises:
        FormError: ONNX Runtime is not installed, the file is damaged, or its output is something else.
    """
    import numpy as np
    import torch

    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise FormError("onnxruntime is not installed; pip install 'yolofleet[export]'") from error

    size = detector.card.image_size
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        wanted = session.get_inputs()[0]
        batch, _, height, width = (
            length if isinstance(length, int) else default
            for length, default in zip(wanted.shape, (2, 3, size, size), strict=True)
        )
        images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
        outputs = session.run(None, {wanted.name: images.numpy()})
    except Exception as error:  # ONNX Runtime has errors of its own for each thing that can be wrong with a file
        raise FormError(f"{path.name}: ONNX Runtime cannot run it: {' '.join(str(error).split())[:300]}") from error
    with torch.inference_mode():
        expected = detector.model(images.to(detector.device)).cpu().numpy()
    found = np.asarray(outputs[0])
    if found.shape != expected.shape:
        raise FormError(
            f"{path.name}: gives {found.shape} where raw predictions are {expected.shape}; only a file without "
            "suppression inside can be compared box by box"
        )
    if not np.isfinite(found).all():
        raise FormError(f"{path.name}: gives values that are not finite")
    scale = np.ones(expected.shape[-1])
    scale[:4] = max(height, width)
    return float((np.abs(found - expected) / scale).max())
