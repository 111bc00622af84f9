"""Export formats: the file types that a detector can be exported to, by name.

A format is a function that writes a file, and where the file can be run here, one that loads it for ``--verify``. A new
format is one file with these functions and one line, in a plugin (`yolofleet.core.extension_points`) or beside the
built-in ones in `yolofleet.export.exporter`:

    FORMATS.register("summary")(ExportFormat(write=write_summary))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.extension_points import ExtensionPoint
from yolofleet.evaluation.detector import Detector
from yolofleet.export.card import ExportCard
from yolofleet.export.settings import InputShape, Thresholds

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to export.

    Attributes:
        format: A name of `FORMATS`.
        shape: The network's input.
        thresholds: Thresholds of the suppression inside the file; None leaves suppression out.
        calibration: (P, 3, H, W) uint8 images; given, the network is quantized to INT8.
        name: Name of the model in a Triton repository.
        on_networks: Called with the float and the INT8 network, both without suppression, where there are both.
    """

    format: str
    shape: InputShape
    thresholds: Thresholds | None = None
    calibration: NDArray[np.uint8] | None = None
    name: str = "detector"
    on_networks: Callable[[ModelProto, ModelProto], None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFormat:
    """How a format is written and run.

    Attributes:
        write: Writes a detector to a path (the folder exists) with the card of the export, and returns the file.
        load: Loads such a file as a network that maps images to decoded predictions as `Network` does, on the CPU; with
            suppression inside, its ``detections(images)`` maps them to detections. None: it cannot be verified.
        has_onnx_options: Whether it can be written with suppression inside, or quantized to INT8.
        is_folder: Whether the path is a folder.
    """

    write: Callable[[Path, Detector, Request, ExportCard], Path]
    load: Callable[[Path], Any] | None = None
    has_onnx_options: bool = False
    is_folder: bool = False


FORMATS: ExtensionPoint[ExportFormat] = ExtensionPoint("export format")
