"""Prediction in ONNX Runtime: an exported ONNX file as a network, and a detector package that uses its own.

On a CPU ONNX Runtime is faster than torch (`benchmarks/inference.py`). A package that holds `model.onnx`, for any input
and without suppression, predicts with it there. The output of that file is compared with that of the weights each time
the package is loaded; where the file cannot be used, torch predicts, and a warning says why.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.core.local_files import read_regular
from yolofleet.core.text import one_line
from yolofleet.evaluation.detector import Detector
from yolofleet.export.card import ExportCard, read_card
from yolofleet.export.prediction_comparison import compare_decoded
from yolofleet.export.settings import COUNT_NAME, DETECTIONS_NAME, INPUT_NAME, ExportError, require_packages
from yolofleet.models.deployment import random_images

NETWORK_NAME = "model.onnx"
MOST_BYTES = (1 << 31) - 1
"""No ONNX file is larger: it is one protobuf message."""

logger = logging.getLogger(__name__)


class OnnxNetwork(nn.Module):
    """An ONNX file that maps images to decoded predictions, or with suppression inside to detections.

    Attributes:
        card: The metadata of the file.
        strides: Pixels a cell, of each level.
    """

    def __init__(self, path: Path, *, num_threads: int | None = None) -> None:
        """Load a file. It is read as bytes: files beside it are never read.

        Args:
            path: The file.
            num_threads: Threads of one run; None: as many as torch has.

        Raises:
            ExportError: The file cannot be read or was not exported by yolofleet, or onnxruntime is missing.
        """
        super().__init__()
        require_packages("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or torch.get_num_threads()
        options.log_severity_level = 3
        self._path, data = path, _read(path)
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a type of its own for each thing that can be wrong with a file
            raise ExportError(f"{path} is not an ONNX file that ONNX Runtime can run: {one_line(error)}") from error
        self.card: ExportCard = read_card(self._session.get_modelmeta().custom_metadata_map, str(path))
        self.strides = self.card.strides

    @property
    def max_stride(self) -> int:
        """Image sides are multiples of it."""
        return max(self.strides)

    @property
    def num_classes(self) -> int:
        """Classes it predicts."""
        return len(self.card.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in 0..1 to decoded predictions (B, boxes, 5 + classes)."""
        if self.card.suppression is not None:
            raise ExportError("this file contains NMS: it returns detections, not decoded predictions")
        return torch.from_numpy(self._run(images)[0])

    def detections(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) in 0..1 to detections (k, 6) each, of a file with suppression inside."""
        if self.card.suppression is None:
            raise ExportError("this file contains no NMS: export it with --nms")
        rows, counts = self._run(images, [DETECTIONS_NAME, COUNT_NAME])
        return [torch.from_numpy(row[: int(count)]) for row, count in zip(rows, counts[:, 0], strict=True)]

    def _run(self, images: Tensor, names: list[str] | None = None) -> list[np.ndarray]:
        pixels = images.detach().cpu().float().numpy()
        num_images, batch = len(pixels), self._session.get_inputs()[0].shape[0]
        if isinstance(batch, int) and num_images < batch:  # the file takes exactly that many: the rest stays black
            pixels = np.concatenate((pixels, np.zeros((batch - num_images, *pixels.shape[1:]), np.float32)))
        try:
            return [output[:num_images] for output in self._session.run(names, {INPUT_NAME: pixels})]
        except Exception as error:  # as above
            raise ExportError(f"{self._path} cannot be run by ONNX Runtime: {one_line(error)}") from error


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES)
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from error


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
    if detector.device.type != "cpu" or not path.exists():
        return detector
    try:
        return replace(detector, network=_equal_network(path, detector))
    except UserError as error:
        logger.warning("torch predicts, which is slower than ONNX Runtime: %s", error)
        return detector


@torch.inference_mode()
def _equal_network(path: Path, detector: Detector) -> OnnxNetwork:
    """Return an ONNX file as a network, if it computes the same as a detector's weights.

    Raises:
        ExportError: It cannot be used for prediction, or computes something else.
    """
    network = OnnxNetwork(path)
    card = network.card
    if card.weights_sha256 != detector.card.weights_sha256:
        raise ExportError(f"{path} was made from other weights; export it again")
    if card.quantized or card.suppression is not None or not card.dynamic:
        raise ExportError(f"{path} can only be used if it is exported with --dynamic, without --nms and --int8")
    images = random_images(detector.model)
    comparison = compare_decoded(detector.network(images), network(images))
    if not comparison.equal:
        raise ExportError(f"{path} does not compute the same as the weights: {comparison}; export it again")
    return network
