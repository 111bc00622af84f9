"""A detector package, loaded to predict: in ONNX Runtime where the package holds its network for it, else in torch.

On a CPU ONNX Runtime is the faster of the two (`benchmarks/inference.py`). A package that holds `model.onnx`, for any
input and without suppression, predicts with it there. What that file computes is compared with the weights each time
the package is loaded; where it cannot be used, torch predicts, and a warning says why.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from yolofleet.errors import UserError
from yolofleet.evaluation.detector import Detector
from yolofleet.export.comparison import compare_decoded
from yolofleet.export.onnx_session import OnnxNetwork
from yolofleet.export.settings import ExportError
from yolofleet.models.deployment import random_images

NETWORK_NAME = "model.onnx"

logger = logging.getLogger(__name__)


def load_detector(folder: str | Path, device: str | torch.device = "cpu") -> Detector:
    """Read a detector package, to predict with it.

    Args:
        folder: The package.
        device: Where it computes.

    Raises:
        DetectorError: As `Detector.load`.
    """
    detector = Detector.load(folder, device)
    path = Path(folder, NETWORK_NAME)
    if detector.device.type != "cpu" or not path.is_file():
        return detector
    try:
        return replace(detector, network=_equal_network(path, detector))
    except UserError as error:
        logger.warning("torch predicts, which is slower than ONNX Runtime: %s", error)
        return detector


@torch.inference_mode()
def _equal_network(path: Path, detector: Detector) -> OnnxNetwork:
    """Return an ONNX file as a network that computes what a detector's weights do.

    Raises:
        ExportError: It is not made for that, or computes something else.
    """
    network = OnnxNetwork(path)
    card = network.card
    if card.weights_sha256 != detector.card.weights_sha256:
        raise ExportError(f"{path} was made of other weights; export it again")
    if card.quantized or card.suppression is not None or not card.dynamic:
        raise ExportError(f"{path} can only be used if it is exported with --dynamic, without --nms and --int8")
    images = random_images(detector.model)
    comparison = compare_decoded(detector.network(images), network(images))
    if not comparison.equal:
        raise ExportError(f"{path} computes something else than the weights: {comparison}; export it again")
    return network
