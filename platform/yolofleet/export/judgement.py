"""What quantization costs and gains: AP and speed of the INT8 network beside the float one."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.evaluate import evaluate
from yolofleet.export.card import ExportCard, put_card
from yolofleet.export.onnx_session import OnnxNetwork
from yolofleet.export.settings import InputShape

if TYPE_CHECKING:
    from onnx import ModelProto

ROUNDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One network.

    Attributes:
        AP: of the dataset; None where there was nothing to find.
        AP50: of the dataset.
        milliseconds: median of a run of one batch, both networks in turns.
        megabytes: of the file.
    """

    AP: float | None
    AP50: float | None
    milliseconds: float
    megabytes: float

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def judge_networks(
    models: tuple[ModelProto, ModelProto],
    detector: Detector,
    dataset: ShardDataset,
    card: ExportCard,
    shape: InputShape,
) -> tuple[Judged, Judged]:
    """Judge the float and the INT8 network on a dataset.

    Args:
        models: both, from images to decoded predictions.
        detector: what they were made of.
        dataset: pictures with their objects.
        card: of the file that is being made.
        shape: of the input.

    Raises:
        UserError: model and dataset have no class in common, or the dataset cannot be read.
    """
    plain = card.model_copy(update={"suppression": None})
    with TemporaryDirectory(prefix="yolofleet-judge-") as folder:
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
        Judged(AP=found["AP"], AP50=found["AP50"], milliseconds=round(speed, 2), megabytes=round(size, 2))
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
