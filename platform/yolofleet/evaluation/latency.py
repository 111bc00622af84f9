"""How fast networks are: percentiles of the time of a pass, images a second, and where that was measured.

What is timed is the network from images in memory to decoded boxes, as in the paper's tables; reading images and
suppression are not in it. Each pass is waited for before the next one begins.
"""

from __future__ import annotations

import math
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from yolofleet import __version__
from yolofleet.evaluation.detector import pass_milliseconds
from yolofleet.evaluation.inference_form import Precision

PERCENTILES = (50, 90, 99)
WARM_UP_PASSES = 3
"""Not counted: the first ones allocate memory and choose algorithms."""

Format = Literal["torch", "onnx"]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and with what latency was measured."""

    device: str
    """cpu or cuda:N."""
    name: str
    """Of the processor."""
    threads: int
    """That torch and ONNX Runtime compute with on the CPU."""
    versions: dict[str, str]
    """Of what computed."""

    @staticmethod
    def of(device: torch.device) -> Environment:
        """Return that of this process on a device."""
        versions = {"yolofleet": __version__, "python": platform.python_version(), "torch": torch.__version__}
        if device.type == "cuda":
            cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            versions |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
            name = torch.cuda.get_device_name(device)
        else:
            name = _processor_name()
        with suppress(metadata.PackageNotFoundError):
            versions["onnxruntime"] = metadata.version("onnxruntime")
        return Environment(device=str(device), name=name, threads=torch.get_num_threads(), versions=versions)

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else ""
        return f"{self.device}: {self.name}{threads}; " + ", ".join(f"{k} {v}" for k, v in self.versions.items())


def _processor_name() -> str:
    """Return the name of the CPU, from /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or sys.platform)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How fast one form of a model is with one number of images."""

    format: Format
    precision: Precision
    batch: int
    """Images that pass together."""
    passes: int
    """That were counted."""
    percentiles: dict[str, float]
    """Milliseconds of a pass, by p50, p90 and p99."""
    images_per_second: float
    """By the median pass."""

    @property
    def milliseconds(self) -> float:
        """Median time of a pass."""
        return self.percentiles["p50"]


def measure(
    network: nn.Module,
    image_size: int,
    device: torch.device,
    *,
    format: Format,
    precision: Precision,
    batch: int,
    repetitions: int,
    most_seconds: float = math.inf,
) -> Timing:
    """Time a network with square random images.

    Args:
        network: In evaluation mode, on the device, in the precision.
        image_size: Side of the images in pixels.
        device: Where the network lies.
        format: What the network is.
        precision: What it computes in; float32 convolutions on a GPU are TF32, as torch has it by default.
        batch: Images that pass together.
        repetitions: Passes that are counted.
        most_seconds: After these no more passes begin.
    """
    images = torch.rand(batch, 3, image_size, image_size, device=device)
    images = images.half() if precision == "fp16" else images
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        milliseconds = pass_milliseconds(
            network, images, warm_up=WARM_UP_PASSES, repetitions=repetitions, most_seconds=most_seconds
        )
    percentile = partial(np.percentile, np.array(milliseconds))
    return Timing(
        format=format,
        precision=precision,
        batch=batch,
        passes=len(milliseconds),
        percentiles={f"p{share}": round(float(percentile(share)), 3) for share in PERCENTILES},
        images_per_second=round(1000 * batch / float(percentile(50)), 2),
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkedModel:
    """A model with its timings, and its AP where that is known."""

    model: str
    """Its name, run or version."""
    size: int
    """Side of the image in pixels."""
    timings: tuple[Timing, ...]
    ap: float | None = None
    """In percent; None where it was never evaluated."""
    evaluated: str | None = None
    """On what and how its AP was measured; None where the paper prints it."""

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)
