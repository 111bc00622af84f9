"""INT8 for ONNX: convolutions and what lies between them computed with 8 bits, ranges taken from real pictures.

Weights get a scale for each output channel. The head's convolutions and the decoding behind them stay in float: a box
coordinate needs more than 256 steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yolofleet.export.packages import require_packages
from yolofleet.export.settings import INPUT_NAME, ExportError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

HEAD_PREFIX = "head."
QUANTIZED = ("Conv", "LeakyRelu", "Sigmoid", "Mul", "Concat", "MaxPool", "Resize", "Add")
"""What is computed with 8 bits; an operator between two of them that is left out would cost two conversions."""


def quantized(model: ModelProto, pictures: NDArray[np.uint8], *, batch: int = 1) -> ModelProto:
    """Return the INT8 form of an exported network.

    Args:
        model: from images to decoded predictions, without suppression.
        pictures: (P, 3, H, W) uint8, to take the ranges of all values from.
        batch: pictures that pass together, as the model wants it.

    Raises:
        ExportError: there are fewer pictures than a batch, or onnxruntime is missing.
    """
    require_packages("onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if len(pictures) < batch:
        raise ExportError(f"{len(pictures)} pictures cannot be read for calibration, a batch of {batch} needs as many")
    with TemporaryDirectory(prefix="yolofleet-quantize-") as folder, _quiet():
        source, prepared, result = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "result"))
        onnx.save(model, source)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantize_static(
            str(prepared),
            str(result),
            _Pictures(pictures, batch),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_head_and_after(graph),
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(result)


class _Pictures:
    """Batches in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, pictures: NDArray[np.uint8], batch: int) -> None:
        self._batches = _batches(pictures, batch)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, None after the last."""
        return next(self._batches, None)


def _batches(pictures: NDArray[np.uint8], batch: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    for start in range(0, len(pictures) - batch + 1, batch):
        yield {INPUT_NAME: pictures[start : start + batch].astype(np.float32) / np.float32(255)}


def _head_and_after(graph: GraphProto) -> list[str]:
    """Return the names of the head's convolutions and of all nodes that work on their results."""
    reached: set[str] = set()
    names = []
    for node in graph.node:  # sorted: a node stands after what it reads
        is_head = node.op_type == "Conv" and any(name.startswith(HEAD_PREFIX) for name in node.input)
        if is_head or reached.intersection(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice on its own use from the user."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
