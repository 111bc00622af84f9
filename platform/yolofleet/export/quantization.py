"""INT8 for ONNX: convolutions and what lies between them are computed with 8 bits, with ranges taken from real images.

Weights get a scale for each output channel. The head's convolutions and the decoding behind them stay in float: a box
coordinate needs more than 256 steps. A `QuantizationReport` measures what the step costs and gains: AP, speed and size
of the INT8 network beside the float one.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolofleet.core.text import plural
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.letterbox import letterbox
from yolofleet.data.records import SampleError
from yolofleet.data.verification import open_verified
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.evaluate import evaluate
from yolofleet.export.card import ExportCard, put_card
from yolofleet.export.runtime import OnnxNetwork
from yolofleet.export.settings import INPUT_NAME, ExportError, InputShape, require_packages

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

DEFAULT_IMAGES = 64
HEAD_PREFIX = "head."
QUANTIZED = ("Conv", "LeakyRelu", "Sigmoid", "Mul", "Concat", "MaxPool", "Resize", "Add")
"""Operators computed with 8 bits; one between two of them that is left out would cost two conversions."""
TIMED_ROUNDS = 10


def dataset_images(data: str | Path | ShardDataset, image_size: int, count: int = DEFAULT_IMAGES) -> NDArray[np.uint8]:
    """Read some images of a dataset, evenly spread over it, as input of a network.

    Args:
        data: The shards.
        image_size: Side of the square input in pixels.
        count: Number of images to read, if there are as many.

    Returns:
        (count, 3, image_size, image_size) uint8 RGB, letterboxed.

    Raises:
        UserError: There is no dataset, or none of the images can be read.
    """
    dataset = data if isinstance(data, ShardDataset) else open_verified(data)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    planes = []
    for number in numbers.tolist():
        try:
            sample = dataset.read_decoded(number, needed_side=image_size)
        except SampleError:
            continue  # the dataset's own checks count and name it
        boxed, _ = letterbox(sample.pixels, (image_size, image_size))
        planes.append(boxed.transpose(2, 0, 1))
    if not planes:
        raise ExportError(f"{dataset.url}: none can be read of {plural(len(numbers), 'image')} that were tried")
    return np.stack(planes)


def quantize(model: ModelProto, images: NDArray[np.uint8], *, batch: int = 1) -> ModelProto:
    """Return the INT8 form of an exported network.

    Args:
        model: Maps images to decoded predictions, without suppression.
        images: (P, 3, H, W) uint8, to take the ranges of all values from.
        batch: Images that pass together, as the model needs it.

    Raises:
        ExportError: There are fewer images than a batch, or onnxruntime is missing.
    """
    require_packages("onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if len(images) < batch:
        raise ExportError(f"{plural(len(images), 'image')} to calibrate with, but a batch needs {batch}")
    with TemporaryDirectory(prefix="yolofleet-quantize-") as folder, _quiet():
        source, prepared, result = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "result"))
        onnx.save(model, source)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantize_static(
            str(prepared),
            str(result),
            _CalibrationReader(images, batch),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_head_and_after(graph),
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(result)


class _CalibrationReader:
    """Batches in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, images: NDArray[np.uint8], batch: int) -> None:
        starts = range(0, len(images) - batch + 1, batch)
        self._batches = (images[start : start + batch].astype(np.float32) / np.float32(255) for start in starts)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


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


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFigures:
    """Quality, speed and size of one network.

    Attributes:
        AP: AP on the dataset; None where there was nothing to measure.
        AP50: AP50 on the dataset.
        milliseconds: Median time of one batch, both networks by turns.
        megabytes: Size of the file.
    """

    AP: float | None
    AP50: float | None
    milliseconds: float
    megabytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationReport:
    """The float and the INT8 network on the same dataset."""

    float_network: NetworkFigures
    int8_network: NetworkFigures

    def as_json(self) -> dict[str, Any]:
        """Return both as plain JSON values."""
        return {"float": asdict(self.float_network), "int8": asdict(self.int8_network)}


def report_quantization(
    models: tuple[ModelProto, ModelProto],
    detector: Detector,
    dataset: ShardDataset,
    card: ExportCard,
    shape: InputShape,
) -> QuantizationReport:
    """Evaluate the float and the INT8 network on a dataset.

    Args:
        models: Both, from images to decoded predictions.
        detector: What they were exported from.
        dataset: Images with their objects.
        card: Card of the file that is being written.
        shape: The network's input.

    Raises:
        UserError: Model and dataset have no class in common, or the dataset cannot be read.
    """
    card = card.model_copy(update={"suppression": None})
    with TemporaryDirectory(prefix="yolofleet-quantization-") as folder:
        networks, sizes = [], []
        for number, model in enumerate(models):
            put_card(model, card)
            path = Path(folder, f"{number}.onnx")
            path.write_bytes(model.SerializeToString())
            sizes.append(path.stat().st_size / 1e6)
            networks.append(OnnxNetwork(path))
        speeds = _median_milliseconds(networks, shape)
        batch_size = 8 if shape.dynamic else shape.batch
        figures = [
            evaluate(
                network, dataset, image_size=shape.image_size, classes=detector.classes, batch_size=batch_size
            ).figures
            for network in networks
        ]
    float_network, int8_network = (
        NetworkFigures(AP=entry["AP"], AP50=entry["AP50"], milliseconds=round(speed, 2), megabytes=round(size, 2))
        for entry, speed, size in zip(figures, speeds, sizes, strict=True)
    )
    return QuantizationReport(float_network=float_network, int8_network=int8_network)


def _median_milliseconds(networks: list[OnnxNetwork], shape: InputShape) -> list[float]:
    """Return each network's median time; they run by turns, so that a busy moment slows all of them."""
    images = torch.rand(shape.batch, 3, shape.image_size, shape.image_size)
    milliseconds: list[list[float]] = [[] for _ in networks]
    for turn in range(TIMED_ROUNDS + 1):
        for network, times in zip(networks, milliseconds, strict=True):
            start = time.perf_counter()
            network(images)
            if turn:  # the first run allocates memory
                times.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(times) for times in milliseconds]
