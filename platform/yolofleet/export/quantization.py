"""What quantization costs and gains: AP and speed of the INT8 network beside the float one.

Images of a dataset as the network's input: what a quantizer learns ranges from, and what an export is tried on.

INT8 for ONNX: convolutions and what lies between them computed with 8 bits, ranges taken from real images.

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

from yolofleet.data.dataset import SampleError, ShardDataset
from yolofleet.data.decode import ImageError
from yolofleet.data.letterbox import letterbox
from yolofleet.data.records import RecordError
from yolofleet.export.settings import INPUT_NAME, ExportError, require_packages

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.evaluate import evaluate
from yolofleet.export.card import ExportCard, put_card
from yolofleet.export.runtime import OnnxNetwork
from yolofleet.export.settings import InputShape

if TYPE_CHECKING:
    from onnx import ModelProto

DEFAULT_IMAGES = 64


def dataset_images(data: str | Path | ShardDataset, image_size: int, count: int = DEFAULT_IMAGES) -> NDArray[np.uint8]:
    """Read some images of a dataset, evenly spread over it.

    Args:
        data: the shards.
        image_size: side of the square input in pixels.
        count: how many, if there are as many.

    Returns:
        (count, 3, image_size, image_size) uint8 RGB, letterboxed.

    Raises:
        UserError: there is no dataset, or none of the images can be read.
    """
    dataset = data if isinstance(data, ShardDataset) else ShardDataset(data)
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    planes = []
    for number in numbers.tolist():
        try:
            sample = dataset.read(number)
            pixels = sample.pixels(sample.record())
        except (SampleError, RecordError, ImageError):
            continue  # the dataset's own checks count and name it
        boxed, _ = letterbox(pixels, (image_size, image_size))
        planes.append(boxed.transpose(2, 0, 1))
    if not planes:
        raise ExportError(f"{dataset.url}: none of the {len(numbers)} images that were tried can be read")
    return np.stack(planes)


HEAD_PREFIX = "head."
QUANTIZED = ("Conv", "LeakyRelu", "Sigmoid", "Mul", "Concat", "MaxPool", "Resize", "Add")
"""What is computed with 8 bits; an operator between two of them that is left out would cost two conversions."""


def quantized(model: ModelProto, images: NDArray[np.uint8], *, batch: int = 1) -> ModelProto:
    """Return the INT8 form of an exported network.

    Args:
        model: from images to decoded predictions, without suppression.
        images: (P, 3, H, W) uint8, to take the ranges of all values from.
        batch: images that pass together, as the model wants it.

    Raises:
        ExportError: there are fewer images than a batch, or onnxruntime is missing.
    """
    require_packages("onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if len(images) < batch:
        raise ExportError(f"{len(images)} images cannot be read for calibration, a batch of {batch} needs as many")
    with TemporaryDirectory(prefix="yolofleet-quantize-") as folder, _quiet():
        source, prepared, result = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "result"))
        onnx.save(model, source)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantize_static(
            str(prepared),
            str(result),
            _Images(images, batch),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_head_and_after(graph),
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(result)


class _Images:
    """Batches in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, images: NDArray[np.uint8], batch: int) -> None:
        self._batches = _batches(images, batch)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, None after the last."""
        return next(self._batches, None)


def _batches(images: NDArray[np.uint8], batch: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    for start in range(0, len(images) - batch + 1, batch):
        yield {INPUT_NAME: images[start : start + batch].astype(np.float32) / np.float32(255)}


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


ROUNDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkEvaluation:
    """The figures of one network.

    Attributes:
        AP: On the dataset; None where it holds no object.
        AP50: On the dataset.
        milliseconds: Median time of a run of one batch, both networks in turns.
        megabytes: Size of the file.
    """

    AP: float | None
    AP50: float | None
    milliseconds: float
    megabytes: float

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def evaluate_networks(
    models: tuple[ModelProto, ModelProto],
    detector: Detector,
    dataset: ShardDataset,
    card: ExportCard,
    shape: InputShape,
) -> tuple[NetworkEvaluation, NetworkEvaluation]:
    """Evaluate the float and the INT8 network on a dataset.

    Args:
        models: Both networks, from images to decoded predictions.
        detector: What they were made of.
        dataset: Images with their objects.
        card: Card of the exported file.
        shape: Shape of the input.

    Raises:
        UserError: Model and dataset have no class in common, or the dataset cannot be read.
    """
    plain = card.model_copy(update={"suppression": None})
    with TemporaryDirectory(prefix="yolofleet-evaluation-") as folder:
        networks, sizes = [], []
        for number, model in enumerate(models):
            put_card(model, plain)
            path = Path(folder, f"{number}.onnx")
            path.write_bytes(model.SerializeToString())
            sizes.append(path.stat().st_size / 1e6)
            networks.append(OnnxNetwork(path))
        speeds = _speeds(networks, shape)
        figures = [
            evaluate(
                network,
                dataset,
                image_size=shape.image_size,
                classes=detector.classes,
                batch_size=8 if shape.dynamic else shape.batch,
            ).figures
            for network in networks
        ]
    first, second = (
        NetworkEvaluation(AP=found["AP"], AP50=found["AP50"], milliseconds=round(speed, 2), megabytes=round(size, 2))
        for found, speed, size in zip(figures, speeds, sizes, strict=True)
    )
    return first, second


def _speeds(networks: list[OnnxNetwork], shape: InputShape) -> list[float]:
    """Return the median milliseconds of a run, the networks in turns."""
    images = torch.rand(shape.batch, 3, shape.image_size, shape.image_size)
    taken: list[list[float]] = [[] for _ in networks]
    for turn in range(ROUNDS + 1):
        for network, times in zip(networks, taken, strict=True):
            start = time.perf_counter()
            network(images)
            if turn:  # the first run makes room
                times.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(times) for times in taken]
